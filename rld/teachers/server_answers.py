"""What teacher servers answer, read into values that are what they should be, whoever answers there.

Shapes: N tokens, J named tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rld.models.logprob_source import ScoredSequence, SourceInfo, TopKLogprobs
from rld.models.tokenizer_profile import PROBES, TokenizerProfile
from rld.teachers.wire_format import MAX_IDS
from rld.types import Answer

_MIN_TAIL = 1e-7
"""Least probability of the tokens without a name; what is left of 1 may be 0 or below by rounding."""

_MAX_MASS = 1.01
"""Greatest sum of a token's probabilities, up to rounding in half precision."""

_TokenId = Annotated[int, Field(ge=0, lt=MAX_IDS)]


class AnswerError(ValueError):
    """An answer is not what was asked for."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)  # no text or truth value for a number


class _Tokenizer(_Strict):
    vocabulary: str
    probes: list[list[_TokenId]] = Field(min_length=len(PROBES), max_length=len(PROBES))
    added: dict[str, _TokenId]


class _Health(_Strict):
    fingerprint: str = Field(min_length=1, max_length=256)
    ends: list[_TokenId]
    num_parameters: int = Field(ge=0, lt=1 << 63)
    max_tokens: int = Field(ge=1, lt=1 << 31)
    tokenizer: _Tokenizer


class _Answers(_Strict):
    texts: list[str]
    complete: list[bool]
    fingerprint: str


class Completion(_Strict):
    """A completion of an OpenAI-compatible endpoint."""

    index: int | None = None
    text: str = ""
    finish_reason: str | None = None
    prompt_logprobs: Any = None


class _Completions(_Strict):
    choices: list[Completion]


class _Models(_Strict):
    class Model(_Strict):
        id: str

    data: list[Model] = Field(min_length=1)


_Kind = TypeVar("_Kind", bound=_Strict)


def _read_as(kind: type[_Kind], content: Any, otherwise: str) -> _Kind:
    """Return content as a model of its values, or raise an `AnswerError` with the message `otherwise`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise AnswerError(otherwise) from error


def read_health(content: Any) -> tuple[SourceInfo, TokenizerProfile, int]:
    """Return what `/health` says of a teacher, of its tokenizer, and of the tokens that a request may have.

    Raises:
        AnswerError: `rld serve-teacher` does not say so.
    """
    health = _read_as(_Health, content, "what answers there is no rld serve-teacher")
    tokenizer = health.tokenizer
    profile = TokenizerProfile(tokenizer.vocabulary, tokenizer.probes, tokenizer.added)
    return SourceInfo(health.fingerprint, frozenset(health.ends), health.num_parameters), profile, health.max_tokens


def read_answers(content: Any, num_prompts: int) -> tuple[list[Answer], str]:
    """Return what `/generate` answers to each prompt, and the fingerprint of the weights.

    Raises:
        AnswerError: it holds something else.
    """
    problem = "its answer holds no answers to the request"
    answers = _read_as(_Answers, content, problem)
    if not len(answers.texts) == len(answers.complete) == num_prompts:
        raise AnswerError(problem)
    return [Answer(*pair) for pair in zip(answers.texts, answers.complete, strict=True)], answers.fingerprint


def read_models(content: Any) -> list[str]:
    """Return the names of the models that an OpenAI-compatible endpoint lists.

    Raises:
        AnswerError: it lists none.
    """
    return [model.id for model in _read_as(_Models, content, "it lists no models").data]


def read_completions(content: Any, num_prompts: int) -> list[Completion]:
    """Return a completion for each prompt, in the order of the prompts.

    Raises:
        AnswerError: there are others, or they are no completions.
    """
    problem = "its answer holds no completions of the request"
    choices = _read_as(_Completions, content, problem).choices
    by_index = {place if choice.index is None else choice.index: choice for place, choice in enumerate(choices)}
    if len(choices) != num_prompts or sorted(by_index) != list(range(num_prompts)):
        raise AnswerError(problem)
    return [by_index[i] for i in range(num_prompts)]


def read_prompt_logprobs(values: Any, sequence: ScoredSequence, top_k: int, num_named: int) -> TopKLogprobs:
    """Read vLLM's `prompt_logprobs` of a sequence: for each token a dictionary by token id.

    A dictionary may name the sampled token beside the k likeliest ones.

    Args:
        values: The field.
        sequence: What was asked for.
        top_k: The number of likeliest tokens that were asked for.
        num_named: The number of them that there should be: all tokens, where these are fewer.

    Raises:
        AnswerError: they are no log-probabilities, or fewer than they should be.
    """
    targets = sequence.ids[-sequence.num_scored :]
    try:
        by_token: Sequence[Any] = values[-sequence.num_scored :]
        target_logprobs = [float(by_id[str(i)]["logprob"]) for by_id, i in zip(by_token, targets, strict=True)]
        likeliest = [_likeliest(by_id, top_k) for by_id in by_token]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AnswerError("its answer has no prompt_logprobs; it should be vLLM, or have the same field") from error
    if {len(pairs) for pairs in likeliest} != {num_named}:
        raise AnswerError(f"it gives fewer than {top_k} prompt_logprobs; start it with --max-logprobs {top_k}")
    log_p_NJ = torch.tensor([[log_p for _, log_p in pairs] for pairs in likeliest])
    mass_N = log_p_NJ.double().exp().sum(-1)
    tail_N = (1 - mass_N).clamp(min=_MIN_TAIL).log().float()
    ids_NJ = torch.tensor([[i for i, _ in pairs] for pairs in likeliest], dtype=torch.int32)
    logprobs = TopKLogprobs(ids_NJ, log_p_NJ, tail_N, torch.tensor(target_logprobs))
    if not logprobs.is_valid() or mass_N.max() > _MAX_MASS:
        raise AnswerError(
            "its prompt_logprobs hold values that are no ids or no log-probabilities; vLLM gives those with "
            "--logprobs-mode raw_logprobs, its default"
        )
    return logprobs


def _likeliest(values: Mapping[str, Any], k: int) -> list[tuple[int, float]]:
    """Return the k likeliest tokens of a token's dictionary with their log-probabilities, in the order of the ids.

    Raises:
        ValueError: a key is no token id.
    """
    pairs = sorted(((float(value["logprob"]), int(i)) for i, value in values.items()), reverse=True)
    if any(not 0 <= i < MAX_IDS for _, i in pairs):
        raise ValueError("a key is no token id")
    return sorted((i, log_p) for log_p, i in pairs[:k])
