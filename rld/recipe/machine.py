"""What this machine can do, by a measurement of half a second: multiplications, reading of memory, free memory."""

from __future__ import annotations

import time
from typing import Any

from rld.recipe.hardware import HERE, Card, Cards

_ROWS, _WIDTH = 1024, 1024
"""The matrices that are multiplied: as large as those of a small model in an update of a few rows."""

_SECONDS = 0.25
"""Of each measurement."""

_READ_FLOATS = 1 << 26
"""Numbers that are read: more than any cache holds."""


def measure_machine() -> tuple[Cards, bool]:
    """Return what the GPU that a training would take can do now, or else the CPU, and whether it is a GPU.

    Other programs that run on it are part of the measurement.
    """
    import psutil
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.ones(shape, device=device, dtype=dtype) for shape in ((_ROWS, _WIDTH), (_WIDTH, _WIDTH)))
    flops = 2 * _ROWS * _WIDTH * _WIDTH / _seconds(lambda: left @ right, torch)
    numbers = torch.ones(_READ_FLOATS, device=device, dtype=dtype)
    bandwidth = numbers.nbytes / _seconds(numbers.sum, torch)
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]
    else:
        name, memory = f"{torch.get_num_threads()} of the CPU's cores", psutil.virtual_memory().available
    return Cards(name, measured=Card(flops, bandwidth, float(memory))), device.type == "cuda"


def measured_here(cards: Cards | None) -> Cards | None:
    """Return cards as they are, but what this machine can do in the place of `here`."""
    return measure_machine()[0] if cards is not None and cards.name == HERE else cards


def _seconds(work: Any, torch: Any) -> float:
    """Return the mean seconds of a piece of work."""
    work()  # memory is allocated, kernels are chosen
    number, started = 0, _now(torch)
    while (elapsed := _now(torch) - started) < _SECONDS:
        work()
        number += 1
    return elapsed / number


def _now(torch: Any) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
