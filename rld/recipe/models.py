"""The options of a model: built from a configuration, pre-trained, or cut out of another model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from rld.recipe import third_party_options
from rld.recipe.cut import Cut
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.recipe.option_checks import check_options
from rld.recipe.tokenizer_files import lone_tokenizer
from rld.utils.options import FrozenOptions, union_by_key
from rld.utils.suggestions import hint


class NewModel(FrozenOptions):
    """A model with random weights, built from a transformers configuration."""

    new: str
    """The configuration's `model_type`, such as llama or qwen2."""
    config: dict[str, Any]
    """The configuration's options, such as hidden_size and num_hidden_layers."""
    tokenizer: str | None = None
    """The model whose tokenizer it has: a name in `models`, a hub id or a folder, which may hold a tokenizer alone.
    None: the recipe's character tokenizer."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the tokenizer, the type and the options of the configuration."""
        other = raw.get("tokenizer")
        if not isinstance(other, str) or lone_tokenizer(other, names.folder) is None:
            yield from _check_other(names, (*loc, "tokenizer"), other)
        if names.document.tree.get("tokenizer") is None and raw.get("tokenizer") is None:
            yield names.problem(loc, " is new and needs a tokenizer: set its tokenizer, or tokenizer.characters")
        kind = raw.get("new")
        if not isinstance(kind, str):
            return
        types = third_party_options.model_types()
        if types is not None and kind not in types:
            yield names.problem((*loc, "new"), f" cannot be {kind!r}{hint(kind, types)}")
        match raw.get("config"):
            case {"num_attention_heads": int(heads), "num_key_value_heads": int(groups)} if (
                groups < 1 or heads % groups
            ):
                yield names.problem(
                    (*loc, "config", "num_key_value_heads"), f" should divide {heads} heads, not {groups}"
                )
        yield from check_options(names, (*loc, "config"), raw.get("config"), third_party_options.model_fields(kind))


class PretrainedModel(FrozenOptions):
    """Pre-trained weights and how to load them."""

    path: str
    """A hub id or a folder."""
    from_pretrained: dict[str, Any] = {}
    """Arguments of transformers' `from_pretrained`, such as dtype or attn_implementation."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check that the path is a folder with weights or a hub id."""
        if isinstance(raw.get("path"), str):
            yield from names.weights((*loc, "path"), raw["path"], [])


class PrunedModel(Cut):
    """A model that is cut out of a larger one, with its tokenizer and its weights.

    What is kept is chosen by importance, as in a [`prune`](#prune) stage.
    """

    prune: str
    """The larger model: a name in `models`, a hub id or a folder."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the larger model, and that something is cut."""
        yield from _check_other(names, (*loc, "prune"), raw.get("prune"))
        yield from cls.check_kept(names, loc, raw)


def _check_other(names: RecipeNames, loc: Loc, name: Any) -> Iterator[RecipeProblem]:
    """Check the name of a model that another model is made from: it is in `models` before it, or stored weights."""
    if isinstance(name, str):
        models = list(names.document.tree.get("models") or {})
        earlier = models[: models.index(loc[1])]
        if name in models and name not in earlier:
            yield names.problem(loc, f": {name!r} should stand before {loc[1]!r} in models")
        else:
            yield from names.weights(loc, name, earlier)


class CharacterTokenizer(FrozenOptions):
    """A tokenizer with one token per character, for models that are trained from scratch on short strings."""

    characters: str = Field(min_length=1)
    """The characters of the vocabulary."""


AnyModel = Annotated[
    Annotated[NewModel, Tag("NewModel")]
    | Annotated[PretrainedModel, Tag("PretrainedModel")]
    | Annotated[PrunedModel, Tag("PrunedModel")]
    | Annotated[str, Tag("str")],
    Discriminator(
        union_by_key(new=NewModel, path=PretrainedModel, prune=PrunedModel),
        custom_error_type="unknown_kind",
        custom_error_message="should be a hub id or a folder, or a mapping with the key 'path', 'new' or 'prune'",
    ),
]
