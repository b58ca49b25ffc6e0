"""Means of the loss's terms over the tokens of an update, over all its micro-batches and processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


class LossMeans:
    """Sums of the loss's terms, divided once by all they were summed over.

    A mean of the micro-batches' means would depend on how the tokens of an update are split.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add a micro-batch's sum of values, and the number of values."""
        pair = torch.stack([total.detach().float(), count.to(total.device).float()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def non_finite(self) -> list[str]:
        """Return the terms whose sum on this process is not finite."""
        return [name for name, pair in self._sums.items() if not pair.isfinite().all()]

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes since the last call."""
        if not self._sums:
            return {}
        sums_N2 = accelerator.reduce(torch.stack([*self._sums.values()]), reduction="sum")
        names, self._sums = list(self._sums), {}
        return dict(zip(names, (sums_N2[:, 0] / sums_N2[:, 1].clamp(min=1)).tolist(), strict=True))
