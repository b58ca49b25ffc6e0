"""The options of a model: built from a configuration, or pre-trained."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from rld.utils.options import FrozenOptions, union_by_key


class NewModel(FrozenOptions):
    """A model with random weights, built from a transformers configuration."""

    new: str
    """The configuration's `model_type`, such as llama or qwen2."""
    config: dict[str, Any]
    """The configuration's options, such as hidden_size and num_hidden_layers."""


class PretrainedModel(FrozenOptions):
    """Pre-trained weights and how to load them."""

    path: str
    """A hub id or a folder."""
    init: dict[str, Any] = {}
    """Arguments of `from_pretrained`, such as dtype or attn_implementation."""


class CharacterTokenizer(FrozenOptions):
    """One token per character: enough for models that are trained from scratch on short strings."""

    characters: str = Field(min_length=1)


AnyModel = Annotated[
    Annotated[NewModel, Tag("NewModel")]
    | Annotated[PretrainedModel, Tag("PretrainedModel")]
    | Annotated[str, Tag("str")],
    Discriminator(
        union_by_key(new=NewModel, path=PretrainedModel),
        custom_error_type="unknown_kind",
        custom_error_message="should be a hub id or a folder, or a mapping with the key 'path' or 'new'",
    ),
]
