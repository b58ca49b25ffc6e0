"""What a run trains on, and what of its launcher's request it does not get."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from accelerate import PartialState

from rld.recipe.schema import Recipe
from rld.recipe.stages.distill import Distill
from rld.recipe.teachers import ServedTeacher
from rld.reporting.summary_records import LaunchRecord
from rld.teachers.http_client import longest_call
from rld.trainer.launch import LaunchRequest, strategy_of

_TIMEOUT = 1800.0
"""Seconds that processes wait for one another where no server can hold one up: transformers' default."""


def process_timeout(recipe: Recipe) -> timedelta:
    """Return how long the processes of a run wait for one another.

    The longest `ddp_timeout` of a stage. Without one, long enough for the others to wait while each of a stage's
    servers takes as long for one of them as a call may take.
    """
    options = [stage.trainer["ddp_timeout"] for stage in recipe.training_stages if "ddp_timeout" in stage.trainer]
    if options:
        return timedelta(seconds=max(options))
    waits = [
        sum(longest_call(spec.timeout_seconds) for spec in stage.teachers.values() if isinstance(spec, ServedTeacher))
        for stage in recipe.training_stages
        if isinstance(stage, Distill)
    ]
    return timedelta(seconds=_TIMEOUT + max(waits, default=0.0))


def read_launch(state: PartialState, request: LaunchRequest, precisions: Iterable[str]) -> LaunchRecord:
    """Return what a run trains on.

    Args:
        state: Accelerate's, of this process.
        request: What was asked for.
        precisions: The mixed precision of each stage.
    """
    names = list(dict.fromkeys(precisions))
    remarks = []
    if request.processes > state.num_processes:
        running = "1 runs" if state.num_processes == 1 else f"{state.num_processes} run"
        fix = "on CPUs torchrun starts several: torchrun --nproc-per-node N -m rld train ..."
        remarks.append(f"{request.processes} processes were asked for, and {running}; {fix}")
    if request.precision is not None and names != [request.precision]:
        used = "none is used" if names == ["no"] else f"{', '.join(names)} is used"
        fix = f"a recipe sets it by trainer: {{{request.precision}: true}}"
        remarks.append(f"mixed precision {request.precision} was asked for, and {used}; {fix}")
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") and state.device.type != "cpu":
        remarks.append(f"the CPU was asked for, and {state.device.type} is used; to hide it set CUDA_VISIBLE_DEVICES=")
    return LaunchRecord(
        processes=state.num_processes,
        strategy="FSDP" if "FSDP" in request.strategies else strategy_of(state),
        device=torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else state.device.type,
        precision=", ".join(names),
        remarks=remarks,
    )
