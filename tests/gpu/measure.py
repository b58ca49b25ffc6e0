"""What the sections of the script measure with: seconds, peaks of memory, and a watch over the tensors.

The watch sees every operation on any device, so what it finds on a CPU holds on a GPU too. Seconds and peaks of memory
are measured on a GPU alone.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}
"""Operations for which the host waits until a GPU has done all that it was told before."""


class Watch(TorchDispatchMode):
    """Records the largest tensor, how many new float32 tensors have which shape, and reads of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: tuple[int, ...] = ()
        self.largest_size = 0
        self.float32_shapes: Counter[tuple[int, ...]] = Counter()
        self.num_reads = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.num_reads += function in _READS or _is_masked(function, args) or _is_copy_to_host(args, result)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                shape = tuple(value.shape)
                if value.numel() > self.largest_size:
                    self.largest, self.largest_size = shape, value.numel()
                self.float32_shapes[shape] += value.dtype == torch.float32 and not _is_input(value, args)
        return result


def _is_input(value: Tensor, args: Sequence[Any]) -> bool:
    return any(isinstance(x, Tensor) and x.data_ptr() == value.data_ptr() for x in tree_leaves(args))


def _is_masked(function: Any, args: Sequence[Any]) -> bool:
    if function not in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
        return False
    return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1])


def _is_copy_to_host(args: Sequence[Any], result: Any) -> bool:
    if not isinstance(result, Tensor) or result.device.type != "cpu":
        return False
    return any(isinstance(x, Tensor) and x.is_cuda for x in tree_leaves(args))


def num_waits(compute: Callable[[], Any], device: torch.device) -> int:
    """Return how often the host waits for the device: on a GPU as CUDA tells it, elsewhere as the watch does."""
    if device.type != "cuda":
        with Watch() as watch:
            compute()
        return watch.num_reads
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            compute()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def seconds(compute: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a computation; it is run once more before, to warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronize()
        start = time.perf_counter()
        compute()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def peak_bytes(compute: Callable[[], Any], device: torch.device) -> int | None:
    """Return the most memory that a computation takes beyond what was taken before; None without a GPU."""
    if device.type != "cuda":
        compute()
        return None
    free()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    compute()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Free what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
