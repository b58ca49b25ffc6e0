"""The ways to get a model: load it, build it with random weights, or cut it out of another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import ModelError, RecipeError
from rld.models.importance import Importance, measure_importance
from rld.models.loading import (
    load_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    loading_whole,
    refusal,
    require_end,
)
from rld.models.pruning import Selection, evenly_spaced, most_influential, prune, select
from rld.models.self_check import require_token_rows
from rld.recipe.cut import Cut
from rld.recipe.models import NewModel
from rld.utils.flops import forward_flops

CalibrationTexts: TypeAlias = Callable[[int, PreTrainedTokenizerBase], Sequence[list[int]]]
"""Returns the token ids of so many training rows, given a tokenizer."""

_ROWS_PER_FORWARD = 8
"""Calibration rows per forward."""


class Description(NamedTuple):
    """What can be told of a model without its weights."""

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    ends: list[int]
    """The tokens that end its answers by its generation configuration."""


class ModelSource(Protocol):
    """A way to get a model and its tokenizer."""

    def load(self, options: Mapping[str, Any], dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model with its weights, and its tokenizer.

        Args:
            options: Arguments of `from_pretrained`.
            dtype: Data type of the weights where the options do not set it.
        """

    def describe(self) -> Description:
        """Return what can be told of it without weights."""

    def skeleton(self) -> PreTrainedModel | None:
        """Return the model on the meta device, without weights; None if its configuration is not on this machine."""


class StoredModel:
    """A folder or a hub id.

    Args:
        place: The folder or hub id.
        options: Arguments of `from_pretrained`.
        is_here: Whether its configuration is on this machine.
    """

    def __init__(self, place: str, options: Mapping[str, Any], is_here: bool) -> None:
        self._place, self._options, self._is_here = place, options, is_here

    def load(self, options: Mapping[str, Any], dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        options = {"dtype": dtype, **self._options, **options}
        model = load_model(self._place, options)
        tokenizer = load_tokenizer(self._place, options)
        require_end(tokenizer, load_config(self._place, options)[1], self._place)
        require_token_rows(model, tokenizer, f"the model {self._place!r}", kind=ModelError)
        return model, tokenizer

    def describe(self) -> Description:
        config, ends = load_config(self._place, self._options)
        tokenizer = load_tokenizer(self._place, self._options)
        require_end(tokenizer, ends, self._place)
        return Description(tokenizer, config, ends)

    def skeleton(self) -> PreTrainedModel | None:
        return load_skeleton(self._place, self._options) if self._is_here else None


class RandomModel:
    """A model with random weights.

    Args:
        spec: Its options.
        tokenizer: Returns its tokenizer.
    """

    def __init__(self, spec: NewModel, tokenizer: Callable[[], PreTrainedTokenizerBase]) -> None:
        self._spec, self._tokenizer = spec, tokenizer

    def load(self, options: Mapping[str, Any], dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        tokenizer, config, _ = self.describe()
        with _clear_errors(), loading_whole():
            return AutoModelForCausalLM.from_config(config), tokenizer

    def describe(self) -> Description:
        tokenizer = self._tokenizer()
        options = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            **self._spec.config,
        }
        with _clear_errors():
            config: PretrainedConfig = AutoConfig.for_model(self._spec.new, **options)
        _require_whole_groups(config)
        _require_token_rows(config, max(tokenizer.get_vocab().values()))
        ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        return Description(tokenizer, config, ends)

    def skeleton(self) -> PreTrainedModel | None:
        with _clear_errors(), torch.device("meta"), loading_whole():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(self.describe().config)
        return model


def _require_token_rows(config: PretrainedConfig, last_token: int) -> None:
    """Refuse a vocabulary of fewer rows than the tokenizer has tokens; the first unknown row would end a forward."""
    num_rows = config.get_text_config().vocab_size
    if num_rows <= last_token:
        raise RecipeError(
            f"config.vocab_size should be at least the {last_token + 1:,} of its tokenizer, not {num_rows:,}"
        )


def _require_whole_groups(config: PretrainedConfig) -> None:
    """Refuse heads that cannot be divided among key-value groups; transformers notices in the first forward only."""
    text = config.get_text_config()
    heads, groups = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise RecipeError(
            f"num_attention_heads ({heads}) should be a multiple of num_key_value_heads ({groups}); set both, for the "
            f"default of {config.model_type} may not fit"
        )


class CutModel:
    """A model that is cut out of a larger one.

    Args:
        cut: What is kept.
        origin: The larger model.
        texts: Returns the token ids of so many calibration rows, given the larger model's tokenizer.
        count_flops: Gets the operations of the passes over these rows.
    """

    def __init__(
        self, cut: Cut, origin: ModelSource, texts: CalibrationTexts, count_flops: Callable[[float], None]
    ) -> None:
        self._cut, self._origin, self._texts, self._count_flops = cut, origin, texts, count_flops

    def load(self, options: Mapping[str, Any], dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = self._origin.load(options, dtype)
        return cut_out(model, self._cut, lambda count: self._texts(count, tokenizer), self._count_flops), tokenizer

    def describe(self) -> Description:
        tokenizer, config, ends = self._origin.describe()
        skeleton = self.skeleton()
        return Description(tokenizer, config if skeleton is None else skeleton.config, ends)

    def skeleton(self) -> PreTrainedModel | None:
        model = self._origin.skeleton()
        if model is None:
            return None
        return prune(model, _selection(self._cut, model, _any_importance(model)))


def cut_out(
    model: PreTrainedModel,
    cut: Cut,
    texts: Callable[[int], Sequence[list[int]]],
    count_flops: Callable[[float], None],
) -> PreTrainedModel:
    """Return a smaller model that is cut out of a model.

    Args:
        model: The larger model.
        cut: What is kept.
        texts: Returns the token ids of so many calibration rows.
        count_flops: Gets the operations of the passes over these rows, if there are any.

    Raises:
        RecipeError: the model cannot be cut so.
    """
    importance = None
    if cut.needs_importance:
        rows = texts(cut.calibration_rows)
        importance = measure_importance(model, _batches(rows, model.device))
        count_flops(forward_flops(model.num_parameters(), sum(map(len, rows))))
    return prune(model, _selection(cut, model, importance))


def _selection(cut: Cut, model: PreTrainedModel, importance: Importance | None) -> Selection:
    """Return the parts of a model that are kept."""
    depth = model.config.num_hidden_layers
    layers: Sequence[int] | None = cut.layers if isinstance(cut.layers, list) else None
    if isinstance(cut.layers, int):
        if cut.layers > depth:
            raise RecipeError(f"{cut.layers} layers cannot be kept: the model has {depth}")
        if cut.layers_by == "influence":
            assert importance is not None
            layers = most_influential(importance, cut.layers)
        else:
            layers = evenly_spaced(depth, cut.layers)
    return select(
        model,
        importance,
        layers=layers,
        hidden=cut.hidden_size,
        units=cut.intermediate_size,
        heads_per_group=cut.heads_per_group,
    )


def _any_importance(model: PreTrainedModel) -> Importance:
    """Return an importance of the right shapes, for a model without weights."""
    config = model.config
    return Importance(
        torch.zeros(config.num_hidden_layers),
        torch.zeros(config.hidden_size),
        [torch.zeros(config.intermediate_size)] * config.num_hidden_layers,
        [torch.zeros(config.num_attention_heads)] * config.num_hidden_layers,
    )


def _batches(texts: Sequence[list[int]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids and attention masks `[B, S]` of texts of similar lengths."""
    texts = sorted(texts, key=len)
    for start in range(0, len(texts), _ROWS_PER_FORWARD):
        piece = texts[start : start + _ROWS_PER_FORWARD]
        longest = max(map(len, piece))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in piece], device=device)
        attention = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in piece], device=device)
        yield ids, attention


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Say in one line what transformers does not accept in a configuration."""
    try:
        yield
    except (ValueError, LookupError, TypeError, RuntimeError, StrictDataclassError) as error:
        raise RecipeError(refusal(error)) from error
