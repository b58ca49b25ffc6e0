"""Compute the sizes of a recipe's models before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rld.recipe import registry, third_party_options
from rld.recipe.cut import Cut
from rld.recipe.hardware import Demand
from rld.recipe.models import AnyModel, CharacterTokenizer, NewModel, PretrainedModel, PrunedModel
from rld.recipe.shapes import Shape
from rld.recipe.teachers import TeacherSpec
from rld.recipe.tokenizer_files import lone_tokenizer, num_tokens
from rld.utils.flops import Account
from rld.utils.label_words import LabelWords

_GATED = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2"}
"""Architectures whose feed-forward blocks have a gate."""

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
"""Options of a configuration from which parameters are counted, and which every one has."""

_SPECIAL_TOKENS = 3
"""The number of special tokens of a character tokenizer: padding, end and unknown."""


def parameters(config: Mapping[str, Any]) -> int | None:
    """Return the number of parameters of a decoder with gated feed-forward blocks, such as Llama, Qwen or Gemma.

    Args:
        config: The content of its `config.json`; a missing option has its class's default.

    Returns:
        The count, embeddings included, tied ones once; None for another architecture, or where a size is no positive
        whole number of 64 bits.
    """
    kind = config.get("model_type", "")
    if kind not in _GATED:
        return None
    c = {**third_party_options.model_defaults(kind), **config}
    sizes: list[Any] = [c.get(key) for key in _SIZES]
    others: list[Any] = [c.get("head_dim"), c.get("num_key_value_heads")]
    if not all(isinstance(size, int) and 0 < size < 1 << 63 for size in (*sizes, *filter(None, others))):
        return None
    layers, width, inner, queries, keys, _ = Shape.of(c)
    attention = 2 * width * queries + 2 * width * keys
    if kind == "qwen2":
        attention += queries + 2 * keys
    elif c.get("attention_bias"):
        attention += queries + 2 * keys + width
    if kind == "qwen3":
        attention += 2 * queries // c["num_attention_heads"]  # the norms of queries and keys
    feed_forward = 3 * width * inner + (2 * inner + width if c.get("mlp_bias") else 0)
    norms = (4 if kind == "gemma2" else 2) * width
    embeddings = c["vocab_size"] * width * (1 if c.get("tie_word_embeddings") else 2)
    return int(layers * (attention + feed_forward + norms) + width + embeddings)


def config_of(model: str, relative_to: Path) -> dict[str, Any] | None:
    """Return the `config.json` of a folder, or of a hub id in the local cache; None when it is not on this machine."""
    path = registry.model_file(model, "config.json", relative_to)
    if path is None:
        return None
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


@dataclass(frozen=True)
class StageCost:
    """The estimated cost of a stage; None where a model's size is unknown.

    Operations are 2 per parameter and token in the forward pass and 4 in the backward pass (Kaplan et al. 2020,
    section 2.1), without the quadratic part of attention. Memory excludes activations.
    """

    parameters: int | None
    """The parameters of the model that the stage trains."""
    teachers: Mapping[str, int | None]
    """The parameters of each teacher that is loaded with the model."""
    bytes: int | None
    """Student's weights, gradients and optimiser, teachers' weights; a shared base counts once, adapters do not."""
    flops_by_account: Mapping[Account, int] | None
    """Operations by the accounts by which a run counts them."""
    demand: Demand | None = None
    """What it asks of cards beside operations; None for a stage that trains nothing."""
    flops_range: tuple[int, int] | None = None
    """Fewest and most operations, if completions are as long as gold answers or as possible, and all wrong then, and
    prompts are never refilled or as often as they may be. None: it samples none."""

    @property
    def flops(self) -> int | None:
        """All operations."""
        return None if self.flops_by_account is None else sum(self.flops_by_account.values())


class Lengths(NamedTuple):
    """Mean numbers of tokens of a skill's rows, and how many rows there are."""

    prompt: float
    answer: float
    """The end included."""
    num_rows: float = math.inf
    """Rows that are trained on; infinite for a generator."""
    num_answered: float = math.inf
    """Of these, those with a gold answer; infinite for a generator."""
    label: float | None = None
    """Of the words that say its labels, synonyms included, without an end. None: those of its gold answers."""

    @property
    def total(self) -> float:
        """Mean tokens of prompt and answer together."""
        return self.prompt + self.answer


@dataclass
class Sizes:
    """The sizes of a recipe's models, and what else of a recipe decides what its stages cost.

    Attributes:
        models: The recipe's models.
        tokenizer: The recipe's tokenizer.
        skills: Names of the recipe's skills.
        max_new_tokens: Maximum number of tokens in an answer.
        folder: The folder that paths in the recipe are relative to.
        rows: The lengths of each skill's rows. A skill that is not in it has prompts of no tokens and the longest
            answers, which one without gold answers has too.
        labels: The words of the labels of each skill of labelled rows.
        blocks: The most tokens of a row of each skill of documents.
        can_judge: Whether the recipe's verifier can be asked about any text.
    """

    models: Mapping[str, AnyModel]
    tokenizer: CharacterTokenizer | None
    skills: list[str]
    max_new_tokens: int
    folder: Path
    rows: Mapping[str, Lengths] = field(default_factory=dict)
    labels: Mapping[str, LabelWords] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)
    can_judge: bool = True
    _sizes: dict[str, int | None] = field(default_factory=dict)
    _configs: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """The configurations of the models of stages."""

    def parameters(self, reference: str) -> int | None:
        """Return the number of parameters of the model that `reference` names; None where it is unknown."""
        if reference not in self._sizes:
            config = self._config(reference)
            self._sizes[reference] = None if config is None else parameters(config)
        return self._sizes[reference]

    def shape(self, reference: str) -> Shape:
        """Return the shape of the model that `reference` names, whose size is known."""
        config = self._config(reference)
        assert config is not None
        return Shape.of(config)

    def lengths(self, skills: Sequence[str]) -> Lengths:
        """Return the mean lengths of the rows of skills with equal shares; answers are cut at the maximum."""
        longest = [float(self.blocks.get(skill, self.max_new_tokens)) for skill in skills]
        rows = [self.rows.get(skill, Lengths(0.0, most)) for skill, most in zip(skills, longest, strict=True)]
        pairs = zip(rows, longest, strict=True)
        answers = [min(row.answer, most) if row.num_answered else most for row, most in pairs]
        return Lengths(fmean(row.prompt for row in rows), fmean(answers))

    def label_length(self, skills: Sequence[str]) -> float:
        """Return the mean tokens of the words that say the labels of skills with equal shares, without an end."""
        lengths = [self.rows[skill].label if skill in self.rows else None for skill in skills]
        gold_lengths = (self.lengths([skill]).answer - 1 for skill in skills)
        return fmean(gold if label is None else label for label, gold in zip(lengths, gold_lengths, strict=True))

    def num_words(self, skills: Sequence[str]) -> list[int]:
        """Return how many words say the labels of each skill, synonyms included; 1 where it has no labels."""
        return [len(self.labels[skill].completions) if skill in self.labels else 1 for skill in skills]

    def num_rows(self, skill: str) -> float:
        """Return the number of rows that a skill is trained on; infinite for a generator."""
        return self.rows[skill].num_rows if skill in self.rows else math.inf

    def num_answered(self, skill: str) -> float:
        """Return the number of rows with a gold answer that a skill is trained on; infinite for a generator."""
        return self.rows[skill].num_answered if skill in self.rows else math.inf

    def cut_parameters(self, reference: str, cut: Cut) -> int | None:
        """Return the number of parameters of what is cut out of a model; None where it is unknown."""
        config = self._config(reference)
        return None if config is None else parameters(cut_config(config, cut))

    def add_stage(self, name: str, num_parameters: int | None, *, origin: str, cut: Cut | None) -> None:
        """Store the size of the model of a stage, which later stages may refer to.

        Args:
            name: The stage's name.
            num_parameters: The number of parameters of its model.
            origin: The model from which it is made.
            cut: What the stage keeps of that model; None: all.
        """
        self._sizes[name], config = num_parameters, self._config(origin)
        self._configs[name] = config if config is None or cut is None else cut_config(config, cut)

    def dtype(self, teacher: TeacherSpec) -> str:
        """Return the data type of a teacher's weights."""
        model = self.models.get(teacher.model)
        options = model.from_pretrained if isinstance(model, PretrainedModel) else {}
        return str({**options, **teacher.from_pretrained}.get("dtype", "float32"))

    def _config(self, reference: str) -> dict[str, Any] | None:
        if reference in self._configs:
            return self._configs[reference]
        model = self.models.get(reference, reference)
        if isinstance(model, NewModel):
            vocabulary = self._vocabulary(model)
            return None if vocabulary is None else {"vocab_size": vocabulary, **model.config, "model_type": model.new}
        if isinstance(model, PrunedModel):
            origin = self._config(model.prune)
            return None if origin is None else cut_config(origin, model)
        return config_of(model.path if isinstance(model, PretrainedModel) else model, self.folder)

    def _vocabulary(self, model: NewModel) -> int | None:
        """Return the number of tokens of a new model; of another model's tokenizer it is its embedding's rows."""
        if model.tokenizer is None:
            assert self.tokenizer is not None  # `read_recipe` rejects a new model without one
            return len(set(self.tokenizer.characters)) + _SPECIAL_TOKENS
        if (file := lone_tokenizer(model.tokenizer, self.folder)) is not None:
            return num_tokens(file)
        other = self._config(model.tokenizer)
        return None if other is None else other.get("vocab_size")


def cut_config(config: Mapping[str, Any], cut: Cut) -> dict[str, Any]:
    """Return the sizes of a model that is cut out of one with the given configuration."""
    full = {**third_party_options.model_defaults(config.get("model_type", "")), **config}
    heads, groups = full["num_attention_heads"], full.get("num_key_value_heads") or full["num_attention_heads"]
    layers = len(cut.layers) if isinstance(cut.layers, list) else cut.layers
    changes = {
        "num_hidden_layers": layers,
        "intermediate_size": cut.intermediate_size,
        "hidden_size": cut.hidden_size,
        "num_attention_heads": None if cut.heads_per_group is None else cut.heads_per_group * groups,
    }
    head_width = full.get("head_dim") or full["hidden_size"] // heads
    return {**full, "head_dim": head_width, **{key: value for key, value in changes.items() if value is not None}}


def quantity(number: int | None) -> str:
    """Return a number with three significant digits and its SI prefix.

    >>> quantity(862_400)
    '862k'
    """
    if number is None:
        return "unknown"
    value, prefixes = float(number), iter(("", "k", "M", "G", "T", "P", "E", "Z"))
    while (prefix := next(prefixes)) != "Z" and value >= 999.5:
        value /= 1000
    return f"{value:.3g}{prefix}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural ends with an s.

    >>> counted(1, "step")
    '1 step'
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"
