"""What a rollout carries beside TRL's own keys, and masks over its tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Batch = dict[str, Any]


def loss_mask(batch: Batch) -> Tensor:
    """Completion tokens that count: `[B, T]`."""
    mask: Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def taught_share(batch: Batch) -> Tensor:
    """Weight of the teachers that speak on each token: `[B, T]`."""
    share: Tensor = (batch["teacher_weights"][..., None] * batch["teacher_tokens"]).sum(1)
    return share
