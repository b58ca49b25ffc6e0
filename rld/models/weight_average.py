"""The running average of a model's trained weights, which the model can have in their place for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rld.utils.tensors import at_least_float32


class WeightAverage:
    """The exponential moving average of a model's trained weights, in at least single precision.

    In bf16 a step of 1% towards the weights would be rounded away. Weights that are not trained, such as those beside
    an adapter, have no average.

    Args:
        model: The model, with the weights that the average starts with.
        decay: Share of the average that an update keeps, in [0, 1].
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {weight: at_least_float32(weight.detach()).clone() for weight in self._weights.values()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights: `average = decay * average + (1 - decay) * weight`."""
        for weight, average in self._averages.items():
            average.lerp_(weight.to(average.dtype), 1 - self.decay)

    @contextmanager
    def in_place(self, part: nn.Module) -> Iterator[None]:
        """Let a part of the model, or all of it, have the average in place of its weights; nothing is copied back.

        Nobody may train the model meanwhile.
        """
        weights = {weight: weight.data for weight in part.parameters() if weight in self._averages}
        _set({weight: self._averages[weight].to(weight.dtype) for weight in weights})
        try:
            yield
        finally:
            _set(weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by the names of their weights."""
        return {name: self._averages[weight] for name, weight in self._weights.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name, average in self.state_dict().items():
            average.copy_(state[name])


def _set(values: Mapping[nn.Parameter, Tensor]) -> None:
    for weight, value in values.items():
        weight.data = value
    torch.clear_autocast_cache()  # which has the weights' values in half precision
