"""Helpers for the precision, padding and chunking of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in at least single precision."""
    return x if x.element_size() >= 4 else x.float()


def token_chunks(num_tokens: int, vocabulary: int, max_logits: int, min_tokens: int = 1) -> Iterator[slice]:
    """Yield slices that split tokens into chunks of at most `max_logits` logits, but at least `min_tokens` tokens."""
    step = max(min_tokens, max_logits // vocabulary)
    for start in range(0, num_tokens, step):
        yield slice(start, min(start + step, num_tokens))


def pad_right(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows of integers as one tensor `[B, S]`, padded on the right with `fill`, and its mask: 0 at padding."""
    return _padded(rows, fill, is_left=False)


def pad_left(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows of integers as one tensor `[B, S]`, padded on the left with `fill`, and its mask: 0 at padding."""
    return _padded(rows, fill, is_left=True)


def _padded(rows: Sequence[Sequence[int]], fill: int, *, is_left: bool) -> tuple[Tensor, Tensor]:
    import torch  # deferred, because modules that `rld check` imports import this module

    size = max(map(len, rows), default=0)
    values_BS = torch.full((len(rows), size), fill, dtype=torch.long)
    mask_BS = torch.zeros_like(values_BS)
    for b, row in enumerate(rows):
        place = slice(size - len(row), size) if is_left else slice(len(row))
        values_BS[b, place], mask_BS[b, place] = torch.tensor(row, dtype=torch.long), 1
    return values_BS, mask_BS


def pad_prompts_and_completions(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return prompts padded on the left and completions padded on the right as one batch, in TRL's layout.

    Returns:
        Ids and attention `[B, S]`, and the completions' mask `[B, T]`.
    """
    import torch

    prompts, completions = zip(*rows, strict=True)
    (ids_BP, mask_BP), (ids_BT, mask_BT) = pad_left(prompts), pad_right(completions)
    return torch.cat([ids_BP, ids_BT], dim=1), torch.cat([mask_BP, mask_BT], dim=1), mask_BT
