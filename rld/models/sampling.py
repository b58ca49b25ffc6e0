"""Sampling in which the draws of a completion depend on a seed and its prompt alone, whatever stands beside it.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SeededSampling:
    """Samples tokens at a temperature, and leaves the random state as it was."""

    seed: int
    temperature: float

    def draws(self, prompt: list[int]) -> Iterator[float]:
        """Yield a uniform number in [0, 1) for each token of the completion of a prompt."""
        generator = random.Random(f"{self.seed} {prompt}")
        while True:
            yield generator.random()

    def tokens(self, logits_NV: Tensor, draws: Sequence[float]) -> Tensor:
        """Return the token `[N]` that each row's draw picks."""
        cumulative_NV = (logits_NV.double() / self.temperature).softmax(-1).cumsum(-1)
        uniform_N1 = cumulative_NV.new_tensor(draws)[:, None]
        tokens_N1 = torch.searchsorted(cumulative_NV, uniform_N1 * cumulative_NV[:, -1:], right=True)
        return tokens_N1[:, 0].clamp(max=logits_NV.shape[-1] - 1)
