"""Greedy and sampled answers of a model."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rld.errors import ModelError, NonFiniteError
from rld.models.logprob_source import LogprobSource
from rld.models.prompting import PromptEncoder, is_chat
from rld.models.self_check import context_length, non_finite_weight, require_context
from rld.models.thinking import StripThinking
from rld.types import Answer, Row

_SHAPING_OPTIONS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "penalty_alpha",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "typical_p",
)
"""Options that change samples, for which a GRPO trainer has none of its own."""


def generate(
    model: PreTrainedModel | LogprobSource,
    encoder: PromptEncoder,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    alone: bool = False,
    name: str | None = None,
) -> list[Answer]:
    """Answer the rows' prompts greedily.

    A prompt that with an answer is longer than the model's context gets an empty, incomplete answer, and a warning.

    Args:
        model: A model on its device, whose mode is restored, or a log-probability source that generates.
        encoder: Encodes the prompts for the model.
        rows: The same on every process, each of which answers a share of them, unless `alone`.
        max_new_tokens: Greatest length of an answer.
        batch_size: Rows per forward of a process.
        alone: Whether this process answers all its rows itself, because they are its own.
        name: The model's name in errors and warnings. None: that of its folder or hub id.

    Returns:
        The answers of all rows, in their order, on every process.
    """
    prompts = [encoder.encode(row["prompt"]) for row in rows]
    readable = _readable(model, prompts, max_new_tokens, name)
    order = sorted(readable, key=lambda i: len(prompts[i]))  # prompts of like length need little padding
    state = PartialState()
    numbers = order if alone else order[state.process_index :: state.num_processes]
    share = [prompts[i] for i in numbers]
    ends = encoder.ends(is_chat(rows))
    if not share:
        answers = []
    elif isinstance(model, LogprobSource):
        answers = model.generate(share, max_new_tokens, ends)
    else:
        answers = complete(
            model,
            encoder.tokenizer,
            share,
            ends=ends,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            decode=encoder.decode,
            name=name,
        )
    numbered = list(zip(numbers, answers, strict=True))
    gathered: list[tuple[int, Answer]] = numbered if alone else gather_object(numbered)
    by_row = dict(gathered)
    return [by_row.get(i, Answer("", is_complete=False)) for i in range(len(rows))]


def _readable(
    model: PreTrainedModel | LogprobSource, prompts: Sequence[list[int]], max_new_tokens: int, name: str | None
) -> list[int]:
    """Return the indices of the prompts that fit into a model's context with an answer, and warn of the others."""
    limit = None if isinstance(model, LogprobSource) else context_length(model.config)
    if limit is None:
        return list(range(len(prompts)))
    readable = [i for i, ids in enumerate(prompts) if len(ids) + max_new_tokens <= limit]
    if len(readable) < len(prompts):
        warnings.warn(
            f"{name or _name(model)} leaves {len(prompts) - len(readable)} of {len(prompts)} prompts without an answer"
            f": with {max_new_tokens} tokens for an answer they are longer than its context of {limit}",
            stacklevel=3,
        )
    return readable


def _name(model: Any) -> str:
    return f"the model {model.config._name_or_path or model.config.model_type!r}"


def encoder_of(
    model: PreTrainedModel | LogprobSource,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    strip_thinking: StripThinking = False,
) -> PromptEncoder:
    """Return the encoder of a model's prompts and answers."""
    ends = sorted(model.info().ends) if isinstance(model, LogprobSource) else end_tokens(model)
    return PromptEncoder(tokenizer, chat_template_kwargs, model_ends=ends, strip_thinking=strip_thinking)


def declare_ends(model: PreTrainedModel, encoder: PromptEncoder, is_chat: bool) -> None:
    """Let a model's `generate` stop at the token by which its chat template closes a turn; it is saved with it."""
    ends = encoder.ends(is_chat)
    if set(ends) - set(encoder.ends(is_chat=False)):
        model.generation_config.eos_token_id = ends


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    ends: Collection[int],
    max_new_tokens: int,
    batch_size: int = 64,
    decode: Callable[[list[list[int]]], list[str]] | None = None,
    name: str | None = None,
) -> list[Answer]:
    """Answer prompts of token ids greedily, `batch_size` at a time; the model is left in the mode it was in.

    Args:
        ends: Tokens that end an answer, beside those of the tokenizer and of the model's generation configuration.
        decode: Returns the texts of answers without their ends. None: those without special tokens.
        name: As of `generate`.

    Raises:
        NonFiniteError: the model's logits are NaN.
    """
    decode = decode or PromptEncoder(tokenizer).decode
    config, answers = _greedy(model, tokenizer, ends, max_new_tokens), list[Answer]()
    with _generating(model, config):
        for start in range(0, len(prompts), batch_size):
            completions = _completions(model, config, prompts[start : start + batch_size], name=name)
            bare = [ids[:-1] if is_complete else ids for ids, is_complete in completions]
            answers += [
                Answer(text, is_complete) for text, (_, is_complete) in zip(decode(bare), completions, strict=True)
            ]
    return answers


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    ends: Collection[int],
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> list[list[int]]:
    """Sample a completion of each prompt, `batch_size` at a time.

    Draws depend on `seed` and their prompt alone, whatever stands beside it, and the random state stays as it was.

    Args:
        ends: As of `complete`.

    Returns:
        Token ids, the end included where there is one.

    Raises:
        ModelError: a prompt with a completion is longer than the model's context.
        NonFiniteError: the model's logits are NaN.
    """
    longest = max(map(len, prompts), default=0)
    text = f"the longest prompt ({longest} tokens) with a completion of up to {max_new_tokens}"
    require_context(model, longest + max_new_tokens, name=_name(model), text=text, kind=ModelError)
    config, sampled = _greedy(model, tokenizer, ends, max_new_tokens), list[list[int]]()
    with _generating(model, config):
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            draws = _SeededSampling(batch, seed, temperature)
            sampled += [ids for ids, _ in _completions(model, config, batch, draws)]
    return sampled


class _NanWatch(LogitsProcessor):
    """Notes whether any logit is NaN, without waiting for the device."""

    has_nan: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        is_nan = scores.isnan().any()
        self.has_nan = is_nan if self.has_nan is None else self.has_nan | is_nan
        return scores


class _SeededSampling(LogitsProcessor):
    """Samples one token per row with that row's own random generator, by masking all others."""

    def __init__(self, prompts: Sequence[list[int]], seed: int, temperature: float) -> None:
        self._generators = [random.Random(f"{seed} {ids}") for ids in prompts]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative_BV = (scores.double() / self._temperature).softmax(-1).cumsum(-1)
        uniform_B1 = cumulative_BV.new_tensor([[generator.random()] for generator in self._generators])
        token_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1.clamp(max=scores.shape[-1] - 1), 0.0)


def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Collection[int], max_new_tokens: int
) -> GenerationConfig:
    """Return a configuration for greedy decoding with the end tokens of model, tokenizer and chat template."""
    all_ends = sorted({tokenizer.eos_token_id, *end_tokens(model), *ends} - {None})
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=all_ends or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (all_ends or [0])[0],
    )


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the `eos_token_id`s of a model's generation configuration."""
    declared = model.generation_config.eos_token_id
    return [int(i) for i in (declared if isinstance(declared, list) else [declared]) if i is not None]


@contextmanager
def _generating(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Set a model up for generation, and restore it."""
    training = model.training
    model.eval()
    hook = contiguous_head_input(model)
    try:
        with torch.inference_mode(), only_generation_config(model, config):
            yield
    finally:
        hook.remove()
        model.train(training)


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


def unused_options(model: PreTrainedModel) -> list[str]:
    """Return what a model's generation configuration does to samples besides what a trainer sets itself."""
    return sorted(name for name in _SHAPING_OPTIONS if name in model.generation_config.to_diff_dict())


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
    generated = model.generate(input_ids=ids_BP, attention_mask=mask_BP, logits_processor=processing)
    generated = generated[:, longest:].tolist()
    if watch.has_nan is not None and bool(watch.has_nan):
        weight = non_finite_weight(model)
        cause = f"its weight {weight} is not finite" if weight else f"its values leave the range of {model.dtype}"
        raise NonFiniteError(f"{name or _name(model)} generates from logits that are NaN: {cause}; load sound weights")
    ends = set(config.eos_token_id or ())
    sizes = [next((t + 1 for t, token in enumerate(ids) if token in ends), 0) for ids in generated]
    return [(ids[: size or len(ids)], size > 0) for ids, size in zip(generated, sizes, strict=True)]
