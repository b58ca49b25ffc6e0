"""Greedy and sampled answers of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import ModelError
from rld.models.decoding import end_tokens, go_on, name_of
from rld.models.logprob_source import LogprobSource, answer_of
from rld.models.prompting import PromptEncoder, is_chat
from rld.models.sampling import SeededSampling
from rld.models.self_check import context_length, require_context
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

    Raises:
        TeacherDown: a source does not answer; unless `alone`, on every process.
    """
    prompts = encoder.encode_all([row["prompt"] for row in rows])
    answerable = readable(model, prompts, max_new_tokens, name)
    order = sorted(answerable, key=lambda i: len(prompts[i]))  # prompts of like length need little padding
    state = PartialState()
    numbers = order if alone else order[state.process_index :: state.num_processes]
    share = [prompts[i] for i in numbers]
    ends = encoder.ends(is_chat(rows))

    def answer() -> list[Answer]:
        if not share:
            return []
        if isinstance(model, LogprobSource):
            return model.generate(share, max_new_tokens, ends)
        return complete(
            model,
            encoder.tokenizer,
            share,
            ends=ends,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            decode=encoder.decode,
            name=name,
        )

    answers = answer() if alone else answer_of(model, answer)
    numbered = list(zip(numbers, answers, strict=True))
    gathered: list[tuple[int, Answer]] = numbered if alone else gather_object(numbered)
    by_row = dict(gathered)
    return [by_row.get(i, Answer("", is_complete=False)) for i in range(len(rows))]


def readable(
    model: PreTrainedModel | LogprobSource, prompts: Sequence[list[int]], max_new_tokens: int, name: str | None
) -> list[int]:
    """Return the indices of the prompts that fit into a model's context with an answer, and warn of the others."""
    limit = None if isinstance(model, LogprobSource) else context_length(model.config)
    if limit is None:
        return list(range(len(prompts)))
    fitting = [i for i, ids in enumerate(prompts) if len(ids) + max_new_tokens <= limit]
    if len(fitting) < len(prompts):
        warnings.warn(
            f"{name or name_of(model)} leaves {len(prompts) - len(fitting)} of {len(prompts)} prompts without an "
            f"answer: with {max_new_tokens} tokens for an answer they are longer than its context of {limit}",
            stacklevel=3,
        )
    return fitting


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
    completions = go_on(
        model,
        tokenizer,
        [(ids, []) for ids in prompts],
        ends=ends,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        name=name,
    )
    bare = [ids[:-1] if is_complete else ids for ids, is_complete in completions]
    texts = decode(bare) if bare else []
    return [Answer(text, is_complete) for text, (_, is_complete) in zip(texts, completions, strict=True)]


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
    require_context(model, longest + max_new_tokens, name=name_of(model), text=text, kind=ModelError)
    return [
        completion.ids
        for completion in go_on(
            model,
            tokenizer,
            [(ids, []) for ids in prompts],
            ends=ends,
            max_new_tokens=max_new_tokens,
            sampling=SeededSampling(seed, temperature),
            batch_size=batch_size,
        )
    ]


def unused_options(model: PreTrainedModel) -> list[str]:
    """Return what a model's generation configuration does to samples besides what a trainer sets itself."""
    return sorted(name for name in _SHAPING_OPTIONS if name in model.generation_config.to_diff_dict())
