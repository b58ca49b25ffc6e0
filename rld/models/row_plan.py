"""Which prompts and completions share a row, so that the rows of a batch cost least."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

Cost: TypeAlias = Callable[[int, int], int]
"""The time of a forward over a number of rows of one length, in arbitrary units."""


class Part(NamedTuple):
    """A prompt and some of its completions, which share a row."""

    prompt: list[int]
    completions: list[int]
    """Their numbers in the batch."""
    size: int
    """Tokens of prompt and completions."""


def cheapest_rows(ids_BS: Tensor, real_BS: Tensor, num_tokens: int, cost: Cost) -> list[list[Part]]:
    """Return which parts share a row, at the least cost.

    Args:
        ids_BS: Prompts and completions, on the CPU.
        real_BS: Which tokens are no padding, bool.
        num_tokens: The columns of completions.
        cost: The cost of rows.
    """
    lengths = (real_BS[:, -num_tokens:].sum(1) - 1).clamp(min=0).tolist()
    groups: dict[tuple[int, ...], list[int]] = {}
    for b, prompt in enumerate(real_tokens(ids_BS[:, :-num_tokens], real_BS[:, :-num_tokens])):
        groups.setdefault(tuple(prompt), []).append(b)
    parts = list[Part]()
    for ids, completions in groups.items():
        splits = (_split([*ids], completions, lengths, n) for n in range(1, len(completions) + 1))
        parts += min(splits, key=lambda split: sum(cost(1, part.size) for part in split))
    return _cheapest_spread(parts, cost)


def real_tokens(ids_BS: Tensor, real_BS: Tensor) -> list[list[int]]:
    """Return the ids of the real tokens of each row."""
    rows = zip(ids_BS.tolist(), real_BS.tolist(), strict=True)
    return [list(itertools.compress(ids, real)) for ids, real in rows]


def longest(rows: Sequence[Sequence[Part]]) -> int:
    """Return the tokens of the longest row."""
    return max(sum(part.size for part in row) for row in rows)


def _split(prompt: list[int], completions: list[int], lengths: list[int], num_parts: int) -> list[Part]:
    """Split a prompt's completions into parts, each with the prompt before them."""
    count, parts = len(completions), []
    for i in range(num_parts):
        numbers = completions[i * count // num_parts : (i + 1) * count // num_parts]
        parts.append(Part(prompt, numbers, len(prompt) + sum(lengths[b] for b in numbers)))
    return parts


def _spread(parts: Sequence[Part], num_rows: int) -> list[list[Part]]:
    """Put each part, the longest first, into the row that is shortest so far."""
    rows: list[list[Part]] = [[] for _ in range(num_rows)]
    filled = [(0, r) for r in range(num_rows)]
    for part in sorted(parts, key=lambda part: -part.size):
        size, r = heapq.heappop(filled)
        rows[r].append(part)
        heapq.heappush(filled, (size + part.size, r))
    return rows


def _cheapest_spread(parts: Sequence[Part], cost: Cost) -> list[list[Part]]:
    """Return the rows, whatever their number, that cost least."""
    total, largest = sum(part.size for part in parts), max(part.size for part in parts)
    bounds = sorted((cost(n, max(-(-total // n), largest)), n) for n in range(1, len(parts) + 1))
    cheapest, least = list[list[Part]](), math.inf
    for bound, n in bounds:  # what n rows cost at least
        if bound >= least:
            break
        rows = _spread(parts, n)
        if (cost_of_rows := cost(n, longest(rows))) < least:
            cheapest, least = rows, cost_of_rows
    return cheapest
