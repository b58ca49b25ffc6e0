"""Convert a stage's options to arguments of TRL's and PEFT's configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from rld.recipe.stages.base import TrainingStage
from rld.recipe.stages.distill import Distill
from rld.types import SIGNALS


def shared_arguments(
    stage: TrainingStage, num_rows: int, num_processes: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Return the arguments that the trainers of all stages share; the stage's `trainer` section overrides them.

    Args:
        num_rows: Rows of an update, over all processes and accumulation steps.
        folder: The folder of the stage's checkpoints.

    Raises:
        ValueError: the rows cannot be split.
    """
    overrides = dict(stage.trainer)
    steps = int(overrides.get("gradient_accumulation_steps", 1))
    if steps < 1:
        raise ValueError(f"gradient_accumulation_steps should be at least 1, not {steps}")
    parts = num_processes * steps
    if num_rows % parts:
        raise ValueError(
            f"{num_rows} rows an update cannot be split over {num_processes} processes and {steps} "
            f"accumulation steps; make them a multiple of {parts}"
        )
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "seed": seed,
        "per_device_train_batch_size": num_rows // parts,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": stage.checkpoint_every,
        "save_total_limit": 2,
        "report_to": "none",
        "logging_nan_inf_filter": False,  # log NaN and infinite losses as they are
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu and torch.cuda.is_bf16_supported(),
        **overrides,
    }


def distillation_arguments(stage: Distill) -> dict[str, Any]:
    """Return the arguments of `RLDConfig` that a stage's options set."""
    signals, rollout = stage.signals, stage.rollout
    options: dict[str, Any] = {
        "signals": [name for name in SIGNALS if getattr(signals, name) is not None],
        "max_steps": stage.steps,
        "temperature": rollout.temperature,
        "gold_completions": rollout.gold_completions,
        "refill": rollout.refill,
        "gate": stage.gate,
        "distill_on": stage.distill_on,
    }
    if isinstance(rollout.completions, int):
        options["num_generations"] = rollout.completions
    if signals.response is not None:
        response = signals.response
        options["label_calibration"] = response.calibration
        options["divergence"] = response.divergence.model_dump()
        options["combine_teachers"] = response.combine_teachers.model_dump()
        options |= {"response_temperature": response.temperature, "response_top_k": response.top_k}
        options["token_weights"] = response.token_weights and response.token_weights.model_dump()
    if signals.feature is not None:
        options["feature"] = signals.feature.loss.model_dump()
    if stage.gold is not None:
        options |= {"gold_weight": stage.gold.weight, "gold_share": stage.gold.share}
        options["gold_answers"] = stage.gold.answers
    if signals.policy is not None:
        options["teacher_reward"] = signals.policy.teacher_reward
        options["teacher_reward_form"] = signals.policy.teacher_reward_form
    if stage.retain is not None:
        options["retain"] = stage.retain.model_dump()
    if stage.audit is not None:
        options["audit_share"] = stage.audit.share
    return options


def lora_config(options: dict[str, Any] | None) -> LoraConfig | None:
    """Return the configuration of the adapter that a stage trains, None if it trains all weights."""
    return None if options is None else LoraConfig(**{"task_type": "CAUSAL_LM", **options})
