"""TRL's fused head, made to look only at the tokens that have labels on a CPU too.

TRL leaves positions without a label out of the work where its Triton kernels run, and scores every position
elsewhere, because varying shapes make some compilers start again. A CPU has no such compiler, and with prompts that are
longer than answers the prompts would take most of the head's time: on SmolLM2-135M, prompts of 45 tokens and
answers of 5, over a third of a whole update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from trl.trainer import grpo_trainer, utils

from rld.rollout.batch import RolloutBatch

_runs_triton = utils._use_triton


def _leaves_out_unlabelled(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_runs_triton(device))


def skip_unlabelled_positions() -> None:
    """Make the fused heads of this process leave out positions without a label; doing so twice does no harm."""
    utils._use_triton = _leaves_out_unlabelled


_shuffle: Callable[[Any], dict[str, Any]] = grpo_trainer.shuffle_sequence_dict


def _shuffle_prompts(rollout: dict[str, Any]) -> dict[str, Any]:
    batch = cast(RolloutBatch, rollout)
    if "prompt_numbers" not in batch:  # a rollout of TRL's own trainer
        return _shuffle(rollout)
    prompts: list[int] = batch["prompt_numbers"].tolist()
    places: list[int] = _shuffle({"places": torch.arange(len(prompts))})["places"].tolist()
    first = {prompts[place]: turn for turn, place in reversed(list(enumerate(places)))}
    order = sorted(places, key=lambda place: first[prompts[place]])
    return {name: _ordered(value, order) for name, value in rollout.items()}


def _ordered(value: Any, order: list[int]) -> Any:
    if isinstance(value, Tensor):
        return value[order] if value.ndim else value
    return None if value is None else [value[place] for place in order]


def shuffle_by_prompt() -> None:
    """Make this process's GRPO trainers shuffle by prompts where a rollout numbers them; twice does no harm."""
    grpo_trainer.shuffle_sequence_dict = _shuffle_prompts  # type: ignore[assignment]
