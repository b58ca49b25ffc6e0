"""Precision, padding and chunks of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in at least single precision."""
    return x if x.element_size() >= 4 else x.float()


def token_chunks(num_tokens: int, vocabulary: int, max_logits: int, min_tokens: int = 1) -> Iterator[slice]:
    """Yield slices that split tokens into chunks of at most `max_logits` logits, or else of `min_tokens` tokens."""
    step = max(min_tokens, max_logits // vocabulary)
    for start in range(0, num_tokens, step):
        yield slice(start, min(start + step, num_tokens))


def pad_prompts_and_completions(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out prompts and their completions as TRL does, prompts padded on the left and completions on the right.

    Returns:
        Ids and attention `[B, S]`, and the completions' mask `[B, T]`.
    """
    import torch  # here, because modules that `rld check` reads import this one

    longest_P, longest_T = (max(len(row[i]) for row in rows) for i in (0, 1))
    ids, attention, mask = [], [], []
    for prompt, completion in rows:
        left, right = longest_P - len(prompt), longest_T - len(completion)
        ids.append([0] * left + prompt + completion + [0] * right)
        attention.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
        mask.append([1] * len(completion) + [0] * right)
    return torch.tensor(ids), torch.tensor(attention), torch.tensor(mask)
