"""Completions of prompts of token ids, decoded token by token, from the start or behind tokens that are known.

Shapes: B prompts, P tokens of the longest, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rld.errors import NonFiniteError
from rld.models.sampling import SeededSampling
from rld.models.self_check import evaluating, non_finite_weight


class Completion(NamedTuple):
    """The tokens of a completion."""

    ids: list[int]
    """The end included where there is one."""
    is_complete: bool
    """Whether the last token ends it."""


def go_on(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    beginnings: Sequence[tuple[list[int], list[int]]],
    *,
    ends: Collection[int],
    max_new_tokens: int,
    sampling: SeededSampling | None = None,
    batch_size: int = 64,
    name: str | None = None,
) -> list[Completion]:
    """Decode completions whose first tokens are known, `batch_size` at a time.

    Args:
        beginnings: Each prompt and the first tokens of its completion, which are fewer than `max_new_tokens`.
        ends: As of `complete`.
        max_new_tokens: Greatest length of a completion, the first tokens included.
        sampling: How tokens are sampled. None: greedily.
        name: As of `generate`.

    Returns:
        The completions, the first tokens included.

    Raises:
        NonFiniteError: the model's logits are NaN.
    """
    completions = list[Completion]()
    for start in range(0, len(beginnings), batch_size):
        batch = beginnings[start : start + batch_size]
        longest = max_new_tokens - min(len(first) for _, first in batch)
        config = _greedy(model, tokenizer, ends, longest)
        processors = [] if sampling is None else [_Sampler(sampling, batch)]
        with _generating(model, config):
            rest = _completions(model, config, [prompt + first for prompt, first in batch], *processors, name=name)
        for (_, first), (ids, is_complete) in zip(batch, rest, strict=True):
            whole = [*first, *ids]
            completions.append(Completion(whole[:max_new_tokens], is_complete and len(whole) <= max_new_tokens))
    return completions


class _Sampler(LogitsProcessor):
    """Samples one token per row, by masking all others."""

    def __init__(self, sampling: SeededSampling, beginnings: Sequence[tuple[list[int], list[int]]]) -> None:
        self._sampling = sampling
        self._draws = [itertools.islice(sampling.draws(prompt), len(first), None) for prompt, first in beginnings]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens_B = self._sampling.tokens(scores, [next(draws) for draws in self._draws])
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens_B[:, None], 0.0)


class _NanWatch(LogitsProcessor):
    """Notes whether any logit is NaN, without waiting for the device."""

    has_nan: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        is_nan = scores.isnan().any()
        self.has_nan = is_nan if self.has_nan is None else self.has_nan | is_nan
        return scores


def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Collection[int], max_new_tokens: int
) -> GenerationConfig:
    """Return a configuration for greedy decoding with the end tokens of model, tokenizer and chat template."""
    stops = all_ends(model, tokenizer, ends)
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops or [0])[0],
    )


def all_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> list[int]:
    """Return the tokens that end a completion: `ends`, and those of tokenizer and model."""
    return sorted({tokenizer.eos_token_id, *end_tokens(model), *ends} - {None})


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the `eos_token_id`s of a model's generation configuration."""
    declared = model.generation_config.eos_token_id
    return [int(i) for i in (declared if isinstance(declared, list) else [declared]) if i is not None]


@contextmanager
def _generating(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Set a model up for generation, and restore it."""
    hook = contiguous_head_input(model)
    try:
        with evaluating(model), torch.inference_mode(), only_generation_config(model, config):
            yield
    finally:
        hook.remove()


@contextmanager
def only_generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Let a model generate with `config` alone.

    It replaces the model's own configuration, from which `generate` would fill gaps: a model whose configuration bans
    tokens or sets a least length would not be sampled from its own distribution.
    """
    own_config = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own_config


def contiguous_head_input(model: PreTrainedModel) -> RemovableHandle:
    """Make the input of a model's output head contiguous, until the returned handle is removed.

    `generate` reads the last position of the prompts, a slice. PyTorch multiplies a slice with frozen weights as a
    batch, and copies the weights once for each row: on a CPU, 64 prompts and a vocabulary of 152,000 took six times as
    long and 17 GB more.
    """
    head = model.get_output_embeddings()
    handle: RemovableHandle = head.register_forward_pre_hook(lambda _head, states: (states[0].contiguous(),))
    return handle


def _completions(
    model: Any,
    config: GenerationConfig,
    prompts: Sequence[list[int]],
    *processors: LogitsProcessor,
    name: str | None = None,
) -> list[tuple[list[int], bool]]:
    """Return the token ids of generated completions up to their ends, and whether each has one.

    Prompts are padded here, because a tokenizer may have no token to pad with, and behind the mask any will do.

    Raises:
        NonFiniteError: logits are NaN, of which the likeliest would be the first token of all.
    """
    longest, padding = max(map(len, prompts)), config.pad_token_id
    ids_BP = torch.tensor([[padding] * (longest - len(ids)) + ids for ids in prompts], device=model.device)
    mask_BP = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    watch = _NanWatch()
    processing = LogitsProcessorList([watch, *processors])
    # Weights are whole here, so processes that have other prompts, or none, need not wait for one another.
    options = {"logits_processor": processing, "synced_gpus": False}
    generated = model.generate(input_ids=ids_BP, attention_mask=mask_BP, **options)
    generated = generated[:, longest:].tolist()
    require_no_nan(model, watch.has_nan, name)
    ends = set(config.eos_token_id or ())
    sizes = [next((t + 1 for t, token in enumerate(ids) if token in ends), 0) for ids in generated]
    return [(ids[: size or len(ids)], size > 0) for ids, size in zip(generated, sizes, strict=True)]


def require_no_nan(model: PreTrainedModel, has_nan: Tensor | None, name: str | None) -> None:
    """Refuse a model whose logits are NaN.

    Args:
        model: The model.
        has_nan: Whether some of its logits are; None: it had none.
        name: As of `generate`.

    Raises:
        NonFiniteError: some are.
    """
    if has_nan is None or not bool(has_nan):
        return
    weight = non_finite_weight(model)
    cause = f"its weight {weight} is not finite" if weight else f"its values leave the range of {model.dtype}"
    raise NonFiniteError(f"{name or name_of(model)} generates from logits that are NaN: {cause}; load sound weights")


def name_of(model: Any) -> str:
    return f"the model {model.config._name_or_path or model.config.model_type!r}"
