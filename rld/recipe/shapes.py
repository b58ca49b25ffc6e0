"""The shape of a decoder, and the memory that its tokens take: activations in training, keys and values in sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rld.recipe import third_party_options

_BFLOAT16 = 2


class Shape(NamedTuple):
    """The sizes of a decoder with gated feed-forward blocks."""

    layers: int
    width: int
    inner: int
    """Units of a feed-forward block."""
    queries: int
    """Width of all queries of a layer."""
    keys: int
    """Width of all keys of a layer, which is that of its values too."""
    has_norms: bool
    """Whether queries and keys are normalised, as in Qwen3."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Return the shape that a `config.json` describes."""
        kind = config.get("model_type", "")
        c = {**third_party_options.model_defaults(kind), **config}
        heads = c["num_attention_heads"]
        head = c.get("head_dim") or c["hidden_size"] // heads
        keys = (c.get("num_key_value_heads") or heads) * head
        shape = c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"]
        return cls(*shape, heads * head, keys, has_norms=kind == "qwen3")

    def activation_bytes(self) -> int:
        """Return the bytes per token that the backward pass keeps, without checkpointing.

        In bf16 mixed precision, with fused attention. The factors are those of what PyTorch saves for transformers'
        Llama and Qwen3: norms compute in float32, all else in bf16.
        """
        attention = 4 * (self.queries + self.keys) + 6 * self.has_norms * (self.queries + self.keys)
        return self.layers * (26 * self.width + 8 * self.inner + attention)

    def cache_bytes(self) -> int:
        """Return the bytes per token of the keys and values of all layers, in bf16."""
        return self.layers * 2 * self.keys * _BFLOAT16
