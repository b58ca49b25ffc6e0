"""Measure which layers, heads, feed-forward units and hidden channels of a model matter, from its activations.

Shapes: B rows, S tokens, H hidden channels, F feed-forward units, A heads, D channels of a head, L layers.

Sources: the scores of units, heads and channels are those of Muralidharan et al. 2024 (Minitron, arXiv:2407.14679); the
influence of a layer is that of Men et al. 2024 (ShortGPT, arXiv:2403.03853).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rld.errors import RecipeError
from rld.models.self_check import evaluating

PRUNABLE_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""The `model_type`s whose blocks have the weights that pruning cuts, under the names that it expects."""


@dataclass(frozen=True)
class Importance:
    """How much each part of a model matters; larger is more. Scores of one axis compare with each other only.

    Attributes:
        layers: `[L]`, the influence of a block: the sum over batches of the mean of `1 - cos(input, output)`.
        hidden: `[H]`, from the outputs of the norms before attention and feed-forward, summed over the layers.
        units: L tensors `[F]`, from the inputs of `down_proj`.
        heads: L tensors `[A]`, the L2 norm over a head's channels in the input of `o_proj`.
    """

    layers: Tensor
    hidden: Tensor
    units: list[Tensor]
    heads: list[Tensor]


def require_prunable(model: PreTrainedModel) -> None:
    """Raise a `RecipeError` if the blocks of a model are of a type that pruning cannot cut."""
    kind = model.config.model_type
    if kind not in PRUNABLE_TYPES:
        raise RecipeError(f"a model of type {kind!r} cannot be pruned; the types that can: {', '.join(PRUNABLE_TYPES)}")


def feed_forward_norm(block: Any) -> nn.Module:
    """Return the norm before a block's feed-forward layers."""
    norm: nn.Module = getattr(block, "pre_feedforward_layernorm", None) or block.post_attention_layernorm
    return norm


def head_width(model: PreTrainedModel) -> int:
    """Return D, the number of channels of a head."""
    config = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


@torch.no_grad()
def measure_importance(model: PreTrainedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> Importance:
    """Run a model over calibration rows and return the importance of its parts.

    A score is `sqrt(sum over rows of (mean over the row's tokens of |activation|)^2)`. No gradient is computed.

    Args:
        model: A model of one of `PRUNABLE_TYPES`.
        batches: Token ids `[B, S]` and attention masks `[B, S]`, on the model's device.

    Raises:
        RecipeError: the model cannot be pruned, or there is no calibration row.
    """
    require_prunable(model)
    scores = _Scores(model)
    num_batches = 0
    with _hooks(model, scores), evaluating(model):
        for ids_BS, attention_BS in batches:
            scores.attention_BS = attention_BS
            model.base_model(input_ids=ids_BS, attention_mask=attention_BS, use_cache=False)
            num_batches += 1
    if num_batches == 0:
        raise RecipeError("pruning by importance needs calibration rows, and there are none")
    return scores.importance()


class _Scores:
    """Sums of squared activations, by place, while the model runs."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._num_heads, self._head_width = model.config.num_attention_heads, head_width(model)
        self._num_layers = model.config.num_hidden_layers
        self._squares: dict[tuple[str, int], Tensor] = {}
        self._influence = torch.zeros(self._num_layers, dtype=torch.float64)
        self.attention_BS: Tensor

    def add(self, place: str, layer: int, activations: Tensor) -> None:
        """Add the activations `[B, S, n]` of one batch."""
        mask_BS1 = self.attention_BS[..., None].to(torch.float32)
        # where() instead of a product: a padded position may hold infinities
        absolute = torch.where(mask_BS1 > 0, activations.float().abs(), 0.0)
        means = absolute.sum(1) / mask_BS1.sum(1).clamp(min=1)
        squares = means.square().sum(0).double().cpu()
        self._squares[place, layer] = self._squares.get((place, layer), 0) + squares

    def add_influence(self, layer: int, inputs: Tensor, outputs: Tensor) -> None:
        """Add the change of direction between a block's inputs and outputs `[B, S, H]`."""
        cosines = torch.cosine_similarity(inputs.float(), outputs.float(), dim=-1)
        self._influence[layer] += (1 - cosines[self.attention_BS.bool()]).double().mean().cpu()

    def importance(self) -> Importance:
        layers = range(self._num_layers)
        norms = [self._squares[place, layer].sqrt() for place in ("attention", "feed_forward") for layer in layers]
        heads = [self._squares["heads", layer].view(self._num_heads, self._head_width) for layer in layers]
        return Importance(
            layers=self._influence,
            hidden=torch.stack(norms).sum(0),
            units=[self._squares["units", layer].sqrt() for layer in layers],
            # the L2 norm over a head's channels of their scores, which are roots
            heads=[squares_AD.sum(1).sqrt() for squares_AD in heads],
        )


@contextmanager
def _hooks(model: PreTrainedModel, scores: _Scores) -> Iterator[None]:
    """Hand the activations of each block to `scores` while the model runs."""

    def inputs_of(place: str, layer: int) -> Callable[..., None]:
        return lambda _module, args: scores.add(place, layer, args[0])

    def outputs_of(place: str, layer: int) -> Callable[..., None]:
        return lambda _module, _args, output: scores.add(place, layer, output)

    def influence_of(layer: int) -> Callable[..., None]:
        def add(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            scores.add_influence(layer, inputs, output[0] if isinstance(output, tuple) else output)

        return add

    backbone: Any = model.base_model
    with ExitStack() as stack:
        for layer, block in enumerate(backbone.layers):
            for handle in (
                block.mlp.down_proj.register_forward_pre_hook(inputs_of("units", layer)),
                block.self_attn.o_proj.register_forward_pre_hook(inputs_of("heads", layer)),
                block.input_layernorm.register_forward_hook(outputs_of("attention", layer)),
                feed_forward_norm(block).register_forward_hook(outputs_of("feed_forward", layer)),
                block.register_forward_hook(influence_of(layer), with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield
