"""A teacher's mean distribution over the labels of a skill, over the rows that it has scored so far.

Shapes: S skills, K teachers, L labels, P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class LabelMeans:
    """Sums the distributions of each teacher over the labels of each skill, over rows and processes.

    Args:
        labels: The words of each skill's labels.
        teachers: The teachers' names.
        accelerator: Sums over processes.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]], teachers: Sequence[str], accelerator: Accelerator) -> None:
        self.skills, self.teachers, self.accelerator = list(labels), list(teachers), accelerator
        self._sizes = [len(words) for words in labels.values()]
        self._sums_SKL = torch.zeros(len(labels), len(teachers), max(self._sizes), dtype=torch.float64)

    def add(self, distributions: Sequence[tuple[str, int, Tensor]]) -> None:
        """Count distributions of this process; every process calls this as often as the others.

        Args:
            distributions: A skill, a teacher's number, and its probabilities of the skill's labels, `[L]`.
        """
        sums_SKL = torch.zeros_like(self._sums_SKL)
        for skill, k, p_L in distributions:
            sums_SKL[self.skills.index(skill), k, : len(p_L)] += p_L.double().cpu()
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self._sums_SKL += self.accelerator.reduce(sums_SKL.to(device, dtype), "sum").cpu()

    def mean(self, skill: str, k: int) -> Tensor:
        """Return the mean distribution of teacher k on the rows of a skill, `[L]` float64; uniform if it has none."""
        s = self.skills.index(skill)
        sums_L = self._sums_SKL[s, k, : self._sizes[s]].clamp(min=torch.finfo(torch.float32).tiny)
        return sums_L / sums_L.sum()

    def forget(self, k: int) -> None:
        """Forget what is known of teacher k, because its weights have changed."""
        self._sums_SKL[:, k] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums by teacher, as JSON."""
        return {name: self._sums_SKL[:, k].tolist() for k, name in enumerate(self.teachers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; a teacher that it lacks begins anew."""
        for k, name in enumerate(self.teachers):
            if name in state:
                self._sums_SKL[:, k] = torch.tensor(state[name], dtype=torch.float64)
