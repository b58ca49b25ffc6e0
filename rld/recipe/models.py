"""The options of a model: built from a configuration, pre-trained, or cut out of another model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rld.recipe import third_party_options
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.recipe.option_checks import check_options
from rld.utils.options import FrozenOptions, union_by_key
from rld.utils.suggestions import hint


class NewModel(FrozenOptions):
    """A model with random weights, built from a transformers configuration."""

    new: str
    """The configuration's `model_type`, such as llama or qwen2."""
    config: dict[str, Any]
    """The configuration's options, such as hidden_size and num_hidden_layers."""
    tokenizer: str | None = None
    """The model whose tokenizer it has: a name in `models`, a hub id or a folder. None: the recipe's character
    tokenizer."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the tokenizer, the type and the options of the configuration."""
        yield from _check_other(names, (*loc, "tokenizer"), raw.get("tokenizer"))
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


class PrunedModel(FrozenOptions):
    """A model that is cut out of a larger one, with its tokenizer and its weights.

    Hidden channels, heads and feed-forward units are kept by importance: the mean absolute activation over the tokens
    of each calibration row, squared, summed over rows, and the root of that (Muralidharan et al. 2024, Minitron).
    """

    prune: str
    """The larger model: a name in `models`, a hub id or a folder."""
    layers: Annotated[int, Field(gt=0)] | Annotated[list[int], Field(min_length=1)] | None = None
    """How many layers are kept, or their numbers, counted from 0. None: all."""
    layers_by: Literal["evenly", "influence"] = "evenly"
    """How a number of layers is chosen. `evenly`: at equal distances, the first and the last among them. `influence`:
    those that change their input's direction most, by `1 - cos(input, output)` (Men et al. 2024, ShortGPT)."""
    intermediate_size: int | None = Field(None, gt=0)
    """Feed-forward units that are kept in each layer. None: all."""
    heads_per_group: int | None = Field(None, gt=0)
    """Query heads that are kept in each key-value group. None: all. The groups stay."""
    hidden_size: int | None = Field(None, gt=0)
    """Hidden channels that are kept. None: all."""
    calibration_rows: int = Field(256, gt=0)
    """Training rows, with gold answers, from which importance and influence are measured."""

    @property
    def needs_importance(self) -> bool:
        """Whether the model has to be run to choose what is kept."""
        by_influence = isinstance(self.layers, int) and self.layers_by == "influence"
        return by_influence or any((self.intermediate_size, self.heads_per_group, self.hidden_size))

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the larger model, and that something is cut."""
        yield from _check_other(names, (*loc, "prune"), raw.get("prune"))
        if not raw.keys() & {"layers", "intermediate_size", "heads_per_group", "hidden_size"}:
            yield names.problem(loc, " cuts nothing: set layers, intermediate_size, heads_per_group or hidden_size")


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
