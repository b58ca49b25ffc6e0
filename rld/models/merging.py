"""Merge the weights of models of one architecture into one model.

Sources: linear, Wortsman et al. 2022 (model soups, arXiv:2203.05482); SLERP, Shoemake 1985, applied to each weight;
task arithmetic, Ilharco et al. 2023 (arXiv:2212.04089).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rld.errors import RecipeError

Weights = dict[str, Tensor]


@torch.no_grad()
def linear(models: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """Return the weighted mean of models.

    Args:
        models: The models' weights, by name.
        shares: One share per model, at least 0; they are divided by their sum.
    """
    total = sum(shares)
    return _add(models[0], models, [share / total for share in shares])


@torch.no_grad()
def task_arithmetic(base: Weights, models: Sequence[Weights], scales: Sequence[float]) -> Weights:
    """Return the weights of `base` plus, for each model, its difference from `base` times its scale.

    A negative scale takes away what the model has learnt.
    """
    return _add(base, models, scales)


@torch.no_grad()
def slerp(models: Sequence[Weights], position: float) -> Weights:
    """Return the spherical interpolation between two models, each weight taken as one vector.

    `sin((1 - t) a) / sin(a) * w0 + sin(t a) / sin(a) * w1`, where a is the angle between the weights w0 and w1. Where
    they are nearly parallel, and where one is zero, it is the linear interpolation.

    Args:
        models: The weights of two models, by name.
        position: t, from 0 (the first model) to 1 (the second).
    """
    first, second = models

    def interpolate(name: str) -> Tensor:
        start, end = first[name].double(), second[name].double()
        norms = start.norm() * end.norm()
        cosine = (start * end).sum() / norms if norms > 0 else torch.ones((), dtype=torch.float64)
        if cosine.abs() > 1 - 1e-8:
            return start + position * (end - start)
        angle = torch.arccos(cosine)
        return (torch.sin((1 - position) * angle) * start + torch.sin(position * angle) * end) / torch.sin(angle)

    return _map_weights(first, interpolate)


def require_same_shapes(names: Sequence[str], models: Sequence[PreTrainedModel]) -> None:
    """Raise a `RecipeError` that names the first weight in which a model differs in shape from the first model."""
    shapes = [{name: tuple(weight.shape) for name, weight in model.state_dict().items()} for model in models]
    for name, other in zip(names[1:], shapes[1:], strict=True):
        for weight in sorted(shapes[0].keys() | other.keys()):
            if shapes[0].get(weight) != other.get(weight):
                raise RecipeError(
                    f"{names[0]} and {name} cannot be merged: {weight} has the shapes "
                    f"{shapes[0].get(weight, 'none')} and {other.get(weight, 'none')}"
                )


def _add(base: Weights, models: Sequence[Weights], scales: Sequence[float]) -> Weights:
    """Return `base` plus the scaled differences of models from it; a model that equals it adds exactly 0."""

    def total(name: str) -> Tensor:
        origin = base[name].double()
        differences = (scale * (model[name].double() - origin) for model, scale in zip(models, scales, strict=True))
        return sum(differences, start=origin)

    return _map_weights(base, total)


def _map_weights(weights: Weights, value: Callable[[str], Tensor]) -> Weights:
    """Return `value` of each weight that is a floating-point number, in its data type; the others as they are."""
    return {
        name: value(name).to(weight.dtype) if weight.is_floating_point() else weight.clone()
        for name, weight in weights.items()
    }
