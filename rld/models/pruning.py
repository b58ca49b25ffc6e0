"""Cut a smaller model out of a larger one: fewer layers, heads, feed-forward units or hidden channels.

The result is an ordinary model of the same type. Its configuration's `origin_layers` says which of the original model's
`origin_num_layers` layers its own were.

Shapes: H hidden channels, F feed-forward units, A heads in G key-value groups, D channels of a head, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from rld.errors import RecipeError
from rld.models.importance import Importance, head_width, require_prunable
from rld.models.loading import loading_whole, refusal

_AXES: Mapping[str, tuple[str, ...]] = {
    "embed_tokens": ("", "hidden"),
    "lm_head": ("", "hidden"),
    "q_proj": ("query", "hidden"),
    "k_proj": ("", "hidden"),
    "v_proj": ("", "hidden"),
    "o_proj": ("hidden", "query"),
    "gate_proj": ("units", "hidden"),
    "up_proj": ("units", "hidden"),
    "down_proj": ("hidden", "units"),
    "q_norm": ("",),
    "k_norm": ("",),
}
"""For each module, which selection cuts each axis of its weight, and the first axis of its bias. The other modules are
norms of the hidden states."""


@dataclass(frozen=True)
class Selection:
    """The parts of a model that are kept, in ascending order.

    Attributes:
        layers: Numbers of the layers.
        hidden: Hidden channels; None keeps all.
        units: For each kept layer, its feed-forward units; None keeps all.
        heads: For each kept layer, its query heads, as many in each key-value group; None keeps all.
    """

    layers: Sequence[int]
    hidden: Tensor | None = None
    units: Sequence[Tensor] | None = None
    heads: Sequence[Tensor] | None = None


def evenly_spaced(num_layers: int, num_kept: int) -> list[int]:
    """Return `num_kept` of `num_layers` layers at even distances, the first and the last among them."""
    if num_kept == 1:
        return [0]
    return [round(position * (num_layers - 1) / (num_kept - 1)) for position in range(num_kept)]


def most_influential(importance: Importance, num_kept: int) -> list[int]:
    """Return the layers with the largest influence."""
    return _largest(importance.layers, num_kept).tolist()


def select(
    model: PreTrainedModel,
    importance: Importance | None,
    *,
    layers: Sequence[int] | None = None,
    hidden: int | None = None,
    units: int | None = None,
    heads_per_group: int | None = None,
) -> Selection:
    """Return the most important parts of a model.

    Args:
        model: The model to cut.
        importance: The importance of its parts; not needed to cut layers alone.
        layers: Numbers of the kept layers; None keeps all.
        hidden: Number of hidden channels, None: all.
        units: Number of feed-forward units per layer, None: all.
        heads_per_group: Number of query heads in each key-value group, None: all. Groups themselves stay.

    Raises:
        RecipeError: a number is larger than what the model has, or importance is missing.
    """
    require_prunable(model)
    config = model.config
    per_group = config.num_attention_heads // config.num_key_value_heads
    _require_at_most("hidden channels", hidden, config.hidden_size)
    _require_at_most("feed-forward units", units, config.intermediate_size)
    _require_at_most("heads per key-value group", heads_per_group, per_group)
    numbers = _layer_numbers(layers, config.num_hidden_layers)
    if hidden is None and units is None and heads_per_group is None:
        return Selection(numbers)
    if importance is None:
        raise RecipeError("cutting hidden channels, feed-forward units or heads needs their importance")
    return Selection(
        numbers,
        None if hidden is None else _largest(importance.hidden, hidden),
        None if units is None else [_largest(importance.units[layer], units) for layer in numbers],
        None
        if heads_per_group is None
        else [_largest_heads(importance.heads[layer], per_group, heads_per_group) for layer in numbers],
    )


@torch.no_grad()
def prune(model: PreTrainedModel, selection: Selection) -> PreTrainedModel:
    """Return a new model with the selected parts of `model`, in its data type and on its device.

    A selection of everything gives a model with the same logits, bit for bit.
    """
    require_prunable(model)
    places = {layer: place for place, layer in enumerate(selection.layers)}
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        parts = name.split(".")
        place = None
        if "layers" in parts:
            position = parts.index("layers") + 1
            place = places.get(int(parts[position]))
            if place is None:
                continue
            parts[position] = str(place)
        axes = _AXES.get(parts[-2], ("hidden",))
        weights[".".join(parts)] = _cut(weight, axes, _indices(model, selection, place))
    # not `.to(dtype)`, which would round the frequencies of the rotary embedding
    with loading_whole():
        pruned: Any = type(model)._from_config(_config(model, selection), dtype=model.dtype).to(device=model.device)
    pruned.load_state_dict(weights)
    _keep_scale_of_embeddings(model, pruned)
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.train(model.training)
    result: PreTrainedModel = pruned
    return result


def cut_layers(model: PreTrainedModel, other: PreTrainedModel) -> list[int] | None:
    """Return which layers of `other` a pruned model's layers were; None if it was not cut from a model of its depth."""
    config, depth = model.config.get_text_config(), other.config.get_text_config().num_hidden_layers
    layers: list[int] | None = getattr(config, "origin_layers", None)
    return layers if getattr(config, "origin_num_layers", None) == depth else None


def _indices(model: PreTrainedModel, selection: Selection, place: int | None) -> dict[str, Tensor | None]:
    """Return for each named axis what is kept of it in the layer at `place` of the pruned model."""
    indices = {"": None, "hidden": selection.hidden, "units": None, "query": None}
    if place is not None and selection.units is not None:
        indices["units"] = selection.units[place]
    if place is not None and selection.heads is not None:
        width = head_width(model)
        indices["query"] = (selection.heads[place][:, None] * width + torch.arange(width)).flatten()
    return indices


def _cut(weight: Tensor, axes: Sequence[str], indices: Mapping[str, Tensor | None]) -> Tensor:
    """Return a copy of a weight with what is kept of each of its axes."""
    for axis, name in enumerate(axes[: weight.ndim]):
        index = indices[name]
        if index is not None:
            weight = weight.index_select(axis, index.to(weight.device))
    return weight.clone()


def _config(model: PreTrainedModel, selection: Selection) -> Any:
    """Return the configuration of the pruned model."""
    config = model.config
    layers = list(selection.layers)
    changes: dict[str, Any] = {"num_hidden_layers": len(layers), "head_dim": head_width(model)}
    if selection.hidden is not None:
        changes["hidden_size"] = len(selection.hidden)
    if selection.units is not None:
        changes["intermediate_size"] = len(selection.units[0])
    if selection.heads is not None:
        changes["num_attention_heads"] = len(selection.heads[0])
    if getattr(config, "layer_types", None):
        changes["layer_types"] = [config.layer_types[layer] for layer in layers]
    origin = getattr(config, "origin_layers", None) or list(range(config.num_hidden_layers))
    changes["origin_layers"] = [origin[layer] for layer in layers]
    changes["origin_num_layers"] = getattr(config, "origin_num_layers", None) or config.num_hidden_layers
    try:
        return type(config).from_dict(config.to_dict() | changes)
    except StrictDataclassError as error:
        raise RecipeError(f"the model cannot be cut like this: {refusal(error)}") from error


def _keep_scale_of_embeddings(model: PreTrainedModel, pruned: Any) -> None:
    """Scale the embeddings of a pruned Gemma, which multiplies them by the root of its number of hidden channels.

    The weights are scaled up by what the smaller root takes away, and the last norm down, so that a tied head has the
    logits that it would have without the change.
    """
    old, new = model.config.hidden_size, pruned.config.hidden_size
    if old == new or not model.config.model_type.startswith("gemma"):
        return
    scale = (old / new) ** 0.5
    pruned.get_input_embeddings().weight.mul_(scale)
    if pruned.config.tie_word_embeddings:
        norm = pruned.base_model.norm.weight
        norm.copy_((1 + norm) / scale - 1)  # Gemma's norms multiply by 1 + weight


def _layer_numbers(layers: Sequence[int] | None, depth: int) -> list[int]:
    """Return the numbers of the kept layers of a model in ascending order; None keeps all."""
    numbers = list(range(depth)) if layers is None else sorted(layers)
    if not numbers or numbers[0] < 0 or numbers[-1] >= depth or len(set(numbers)) < len(numbers):
        raise RecipeError(f"layers {numbers} cannot be kept: the model has layers 0 to {depth - 1}")
    return numbers


def _largest(scores: Tensor, num_kept: int) -> Tensor:
    return scores.topk(num_kept).indices.sort().values


def _largest_heads(scores_A: Tensor, per_group: int, num_kept: int) -> Tensor:
    """Return the heads with the largest scores in each key-value group."""
    scores_GA = scores_A.view(-1, per_group)
    first_of_group = torch.arange(len(scores_GA))[:, None] * per_group
    return (scores_GA.topk(num_kept, dim=1).indices.sort(1).values + first_of_group).flatten()


def _require_at_most(name: str, number: int | None, limit: int) -> None:
    if number is not None and not 1 <= number <= limit:
        raise RecipeError(f"{number} {name} cannot be kept: the model has {limit}")
