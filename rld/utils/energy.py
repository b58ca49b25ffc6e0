"""The power of this machine's GPUs, by the counters of energy that they have themselves."""

from __future__ import annotations

import importlib.util
import os
import time

import torch

_MILLIJOULES = 1000.0
"""In a joule; the counters have them."""


def lacks_counters() -> bool:
    """Tell whether there are NVIDIA GPUs whose counters cannot be read because nvidia-ml-py is not installed."""
    is_nvidia = torch.version.cuda is not None and torch.cuda.is_available()  # PyTorch calls AMD's GPUs cuda too
    return is_nvidia and importlib.util.find_spec("pynvml") is None


class PowerMeter:
    """Measures the mean power of all GPUs that this process sees, from now on; a teacher may be on several of them."""

    def __init__(self) -> None:
        self._start, self._joules = time.monotonic(), _joules()

    @property
    def watts(self) -> float | None:
        """The mean power since the start, of all these GPUs together.

        None where they have no counter, where it began anew since, and where the training is on several machines, of
        which this one would be counted alone.
        """
        joules, seconds = _joules(), time.monotonic() - self._start
        if joules is None or self._joules is None or joules < self._joules:
            return None
        return (joules - self._joules) / max(seconds, 1e-9)


def _joules() -> float | None:
    """Return what the GPUs have counted since their driver was loaded."""
    number = torch.cuda.device_count()
    if not number or _has_other_machines() or importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        names = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(number)]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        return float(sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles))) / _MILLIJOULES
    except pynvml.NVMLError:  # an old card, or one that is shared by partitions
        return None


def _has_other_machines() -> bool:
    """Tell whether processes of this training are on other machines, by the variables that torchrun sets."""
    return int(os.environ.get("WORLD_SIZE", "1")) > int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
