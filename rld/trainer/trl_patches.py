"""Every function of TRL's modules that rld replaces. No other file assigns to TRL's modules.

- `trl.trainer.utils._use_triton` decides whether TRL's fused head skips positions without a label. TRL skips them where
  its Triton kernels run and scores every position elsewhere, because varying shapes make some compilers start again. A
  CPU has no such compiler, and where prompts are longer than answers they would take most of the head's time: on
  SmolLM2-135M, with prompts of 45 tokens and answers of 5, over a third of a whole update.
- `trl.trainer.grpo_trainer.shuffle_sequence_dict` shuffles a rollout before it is split into micro-batches. TRL
  shuffles completions; here those of one prompt stay together, so that they can share the prompt's forward.
- `trl.trainer.grpo_trainer.create_model_from_path` loads the student by its name. Once there are a trainer's arguments
  with ZeRO-3 it would load parts of the student, and rld shares it after the checks that read it whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from trl.trainer import grpo_trainer, utils

from rld.models.loading import loading_whole
from rld.rollout.batch import RolloutBatch

_runs_triton = utils._use_triton

_shuffle: Callable[[Any], dict[str, Any]] = grpo_trainer.shuffle_sequence_dict

_create: Callable[..., Any] = grpo_trainer.create_model_from_path


def patch_trl() -> None:
    """Apply all patches to this process; to do so twice does no harm."""
    skip_unlabelled_positions()
    grpo_trainer.shuffle_sequence_dict = _shuffle_prompts  # type: ignore[assignment]
    grpo_trainer.create_model_from_path = _create_whole


def skip_unlabelled_positions() -> None:
    """Let TRL's fused heads skip positions without a label on a CPU too; to do so twice does no harm."""
    utils._use_triton = _skips_unlabelled


def _skips_unlabelled(device: torch.device) -> bool:
    return device.type == "cpu" or bool(_runs_triton(device))


def _create_whole(*args: Any, **options: Any) -> Any:
    with loading_whole():
        return _create(*args, **options)


def _shuffle_prompts(rollout: dict[str, Any]) -> dict[str, Any]:
    """Shuffle a rollout's prompts, with TRL's random numbers; a rollout without prompt numbers as TRL does."""
    batch = cast(RolloutBatch, rollout)
    if "prompt_numbers" not in batch:  # a rollout of TRL's own trainer
        return _shuffle(rollout)
    prompts: list[int] = batch["prompt_numbers"].tolist()
    shuffled: list[int] = _shuffle({"rows": torch.arange(len(prompts))})["rows"].tolist()
    first = {prompts[row]: position for position, row in reversed(list(enumerate(shuffled)))}
    order = sorted(shuffled, key=lambda row: first[prompts[row]])
    return {name: _reordered(value, order) for name, value in rollout.items()}


def _reordered(value: Any, order: list[int]) -> Any:
    if isinstance(value, Tensor):
        return value[order] if value.ndim else value
    return None if value is None else [value[row] for row in order]
