"""TRL's shuffle of a rollout, made to keep the completions of one prompt together.

TRL shuffles a rollout's completions before it splits them into micro-batches. What shares a prompt can share a row
(`packing.py`) only inside a micro-batch, so here prompts are shuffled, and their completions stay next to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trl.trainer import grpo_trainer

PROMPTS = "prompt_numbers"
"""Where a rollout says which prompt its completions answer, `[B]`. Without it TRL's shuffle is unchanged."""

_shuffle: Callable[[Any], dict[str, Any]] = grpo_trainer.shuffle_sequence_dict


def _shuffle_prompts(rollout: dict[str, Any]) -> dict[str, Any]:
    if PROMPTS not in rollout:
        return _shuffle(rollout)
    prompts: list[int] = rollout[PROMPTS].tolist()
    places: list[int] = _shuffle({"places": torch.arange(len(prompts))})["places"].tolist()
    first = {prompts[place]: turn for turn, place in reversed(list(enumerate(places)))}
    order = sorted(places, key=lambda place: first[prompts[place]])
    return {name: _ordered(value, order) for name, value in rollout.items()}


def _ordered(value: Any, order: list[int]) -> Any:
    if isinstance(value, Tensor):
        return value[order] if value.ndim else value
    return None if value is None else [value[place] for place in order]


def shuffle_prompts() -> None:
    """Make this process's GRPO trainers shuffle by prompts where a rollout numbers them; twice does no harm."""
    grpo_trainer.shuffle_sequence_dict = _shuffle_prompts  # type: ignore[assignment]
