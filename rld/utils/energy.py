"""The power of this machine's GPUs, by the counters of energy that they have themselves."""

from __future__ import annotations

import importlib.util
import os
import time

import torch

_MILLIJOULES = 1000.0
"""In a joule; the counters have them."""


def lacks_counters() -> bool:
    """Tell whether there are GPUs whose counters cannot be read because the package nvidia-ml-py is not installed."""
    return torch.cuda.is_available() and importlib.util.find_spec("pynvml") is None


class PowerMeter:
    """Measures the mean power of the GPUs that the processes of a training use on this machine, from now on."""

    def __init__(self) -> None:
        self._started, self._joules = time.monotonic(), _joules()

    @property
    def watts(self) -> float | None:
        """The mean power since the start, of all these GPUs together; None where they have no counter."""
        joules, seconds = _joules(), time.monotonic() - self._started
        return None if joules is None or self._joules is None else (joules - self._joules) / max(seconds, 1e-9)


def _joules() -> float | None:
    """Return what the GPUs have counted since their driver was loaded."""
    number = min(torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not number or importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        names = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(number)]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]
        return float(sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles))) / _MILLIJOULES
    except pynvml.NVMLError:  # an old card, or one that is shared by partitions
        return None
