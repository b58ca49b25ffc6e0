"""From a stage's options to those of TRL's and PEFT's configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from rld.stages import Distill, Sft


def shared_arguments(
    stage: Sft | Distill, num_rows: int, num_processes: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Arguments that the trainers of all stages share; the stage's own `trainer` section goes on top.

    Args:
        num_rows: Rows of an update, over all processes and accumulation steps.
        folder: Where its checkpoints go.

    Raises:
        ValueError: the rows cannot be split.
    """
    given = dict(stage.trainer)
    steps = int(given.get("gradient_accumulation_steps", 1))
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
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu and torch.cuda.is_bf16_supported(),
        **given,
    }


def lora(options: dict[str, Any] | None) -> LoraConfig | None:
    """The adapter that a stage trains; None: all weights."""
    return None if options is None else LoraConfig(**{"task_type": "CAUSAL_LM", **options})
