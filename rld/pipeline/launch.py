"""What a run trains on, and what of its launcher's request it does not get."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from accelerate import PartialState

from rld.reporting.history import LaunchRecord
from rld.trainer.launch import LaunchRequest, strategy_of


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
