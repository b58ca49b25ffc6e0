"""The verifier: the reward that decides which answers are correct, called on any text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from rld.errors import RewardError
from rld.models import generation, thinking
from rld.models.chat_template import template_of
from rld.models.prompting import PromptEncoder
from rld.rollout.feedback import log_nothing
from rld.rollout.rewards import DEFAULT_RULE, SuccessRule, all_checked, callable_name, checked, is_async
from rld.types import ROLLOUT_TEXTS, STUDENT_PROMPT, Row

NOT_GIVEN = ("prompt", "completion", "completion_ids", "whole_completions", STUDENT_PROMPT, ROLLOUT_TEXTS)
"""Columns of the rows that TRL does not give to rewards, for which it has other arguments."""

Verify = Callable[..., list[float | None]]
"""A reward with TRL's signature: 1 for a correct answer, less for any other, None where it does not apply."""


@dataclass(frozen=True)
class VerifiedAnswers:
    """Answers of a model to rows.

    Attributes:
        texts: The answers.
        rewards: What the verifier gave to each; None where it does not apply.
        num_tokens: Tokens of all prompts and answers, in the model's tokens.
    """

    texts: list[str]
    rewards: list[float | None]
    num_tokens: int


def no_reward(completions: list[Any], **_: Any) -> list[float]:
    """Stand in for the rewards of a run that has none: pure distillation."""
    return [0.0] * len(completions)


def training_rewards(
    rewards: Any, verifier: Any, teachers: Sequence[Any], *, users: Sequence[Any]
) -> tuple[list[Any] | None, SuccessRule]:
    """Return the rewards of a training, checked, a verifier of its own first, and the rule of the first of them.

    Args:
        rewards: TRL's `reward_funcs`; None is allowed with teachers.
        verifier: A verifier that is not one of the rewards, or None.
        teachers: The teachers.
        users: Other parts that depend on which answers the first of the rewards calls correct; None: there is none.
    """
    decides = bool(teachers) or any(user is not None for user in (verifier, *users))
    functions = all_checked(rewards or ([no_reward] if teachers else None), decides=decides and verifier is None)
    if verifier is not None:
        first = checked(verifier, "verifier", decides=decides)
        return [first, *(functions or [])], first.rule  # type: ignore[attr-defined]
    first = rewards[0] if isinstance(rewards, (list, tuple)) and rewards else rewards
    name = first if isinstance(first, str) else callable_name(first)
    return functions, SuccessRule(name, getattr(first, "success_at", None), decides)


def require_scale(rule: SuccessRule, rewards: Sequence[float]) -> None:
    """Refuse rewards of the verifier on another scale than the rule's; where nothing depends on them, warn.

    Raises:
        RewardError: one is outside [0, 1], and the rule has no `success_at`.
    """
    problem = replace(rule, is_used=True).problem(rewards)
    if problem is None:
        return
    text = f"reward {rule.name!r} returned {rewards[problem[0]]:g}; {problem[1]}"
    if rule.is_used:
        raise RewardError(text)
    warnings.warn(f"{text}; until then the logged rates of success mean nothing", stacklevel=2)


def askable(
    rewards: list[Any], state: Callable[[], Any], log_extra: Callable[[str, Any], None] = log_nothing
) -> Verify | None:
    """Return the first of the checked rewards as a function that gives 1 to correct texts; None where it can't be.

    A model, an asynchronous function and `no_reward` can't be called so. A reward with `success_at` gives 1 or 0. The
    result has the attribute `rejects_beginning`: the reward's, or None where it has none or 0 is a success.

    Args:
        rewards: The rewards.
        state: Returns the trainer's state, which is another object once training has begun.
        log_extra: Stands in for TRL's, because the text is not a completion of a rollout.
    """
    first = rewards[0]
    if isinstance(first, (str, nn.Module)) or is_async(first) or first.__name__ == no_reward.__name__:
        return None
    rule: SuccessRule = first.rule

    def verify(**batch: Any) -> list[float | None]:
        values = first(**batch | {"trainer_state": state(), "log_extra": log_extra, "log_metric": log_nothing})
        if rule.success_at is None:
            return list(values)
        return [None if value is None else float(value >= rule.threshold) for value in values]

    function: Any = verify
    function.rejects_beginning = first.rejects_beginning if rule.threshold > 0 else None
    return cast(Verify, function)


def answers_of(prompts: Sequence[Any], completions: Sequence[Any], encoder: PromptEncoder) -> list[Any]:
    """Return completions as rewards and scores read them: without thinking parts where the encoder says so.

    Where it does not and there are thinking parts, a warning says so.

    Args:
        prompts: The prompt of each completion.
        completions: Texts, or lists of messages, of which those of the assistant are changed. A message whose thinking
            part was parsed already is left as it is.
        encoder: The encoder of the model that wrote them.
    """
    if encoder.thinking is None:
        _warn_of_thinking(prompts, completions, encoder)
        return list(completions)
    return [
        encoder.answer(prompt, completion)
        if isinstance(completion, str)
        else [_without_thinking(message, prompt, encoder) for message in completion]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def as_completions(texts: Sequence[str], completions: Sequence[Any]) -> list[Any]:
    """Return texts in the form of completions, which are texts or lists of messages."""
    return [
        text if isinstance(completion, str) else [{"role": "assistant", "content": text}]
        for completion, text in zip(completions, texts, strict=True)
    ]


def _without_thinking(message: dict[str, Any], prompt: Any, encoder: PromptEncoder) -> dict[str, Any]:
    is_parsed = "reasoning_content" in message or "thinking" in message
    if message.get("role") != "assistant" or is_parsed or not isinstance(message.get("content"), str):
        return message
    return {**message, "content": encoder.answer(prompt, message["content"])}


def _warn_of_thinking(prompts: Sequence[Any], completions: Sequence[Any], encoder: PromptEncoder) -> None:
    pair = thinking.markers(True, template_of(encoder.tokenizer, encoder.chat_template))
    assert pair is not None
    texts = (text if isinstance(text, str) else str(text[-1].get("content")) for text in completions if text)
    if any(map(pair.occurs_in, texts)) or (prompts and pair.opened_by(encoder.render(prompts[0]))):
        warnings.warn(
            f"completions have thinking parts ({pair.opening} ... {pair.closing}), and rewards and scores read them as "
            "part of the answer; strip_thinking leaves them out (prompts.strip_thinking: true in a recipe)",
            stacklevel=1,  # one place, so that it is shown once
        )


def ask(
    verify: Verify, rows: Sequence[Row], completions: Sequence[Any], completion_ids: Sequence[list[int]]
) -> list[float | None]:
    """Call a reward on completions as TRL would.

    Args:
        verify: The reward.
        rows: The row of each completion. Of one with a teacher's own prompt the reward gets the student's.
        completions: Texts, or lists of messages. A text that answers a chat becomes an assistant's message.
        completion_ids: The same as token ids.
    """
    names = [key for row in rows[:1] for key in row if key not in NOT_GIVEN]
    columns = {key: [row.get(key) for row in rows] for key in names}
    prompts = [row.get(STUDENT_PROMPT, row["prompt"]) for row in rows]
    messages = [
        [{"role": "assistant", "content": text}] if isinstance(text, str) and not isinstance(prompt, str) else text
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    return verify(prompts=prompts, completions=messages, completion_ids=list(completion_ids), **columns)


def rejected(
    verify: Verify, rows: Sequence[Row], beginnings: Sequence[str], beginning_ids: Sequence[list[int]]
) -> list[bool]:
    """Tell which beginnings of completions the verifier gives no success to, whatever follows.

    Args:
        verify: The verifier.
        rows: The row of each completion.
        beginnings: Texts.
        beginning_ids: The same as token ids.
    """
    rejects: Verify | None = getattr(verify, "rejects_beginning", None)
    if rejects is None or not rows:
        return [False] * len(rows)
    return [bool(value) for value in ask(rejects, rows, beginnings, beginning_ids)]


def answer_and_verify(
    model: Any,
    encoder: PromptEncoder,
    rows: Sequence[Row],
    verify: Verify,
    *,
    max_new_tokens: int,
    alone: bool = False,
    name: str | None = None,
) -> VerifiedAnswers:
    """Answer the rows' prompts greedily and call the verifier on the answers.

    Args:
        model: A model on its device, or a log-probability source that generates.
        encoder: Encodes prompts for it.
        rows: The same on every process, each of which answers and verifies a share of them, unless `alone`.
        verify: The verifier.
        max_new_tokens: Greatest length of an answer.
        alone: Whether this process answers and verifies all its rows itself, because they are its own.
        name: The model's name in errors and warnings. None: that of its folder or hub id.

    Returns:
        The answers to all rows, on every process.
    """
    answers = generation.generate(model, encoder, rows, max_new_tokens=max_new_tokens, alone=alone, name=name)
    texts = [answer.text for answer in answers]
    if alone:
        return verify_answers(encoder, rows, texts, verify)
    rewards = shared_rewards(encoder, rows, texts, verify)
    return VerifiedAnswers(texts, rewards, encoder.count_tokens(rows, encoder.encode_answers(texts)))


def shared_rewards(
    encoder: PromptEncoder, rows: Sequence[Row], texts: Sequence[str], verify: Verify
) -> list[float | None]:
    """Return `rewards_of` answers that are the same on every process, each of which verifies a share of them.

    So a program is run once, and a verifier that varies gives all processes the same.
    """
    state = PartialState()
    share = slice(state.process_index, None, state.num_processes)
    rewards = rewards_of(encoder, rows[share], texts[share], verify)
    gathered: list[tuple[int, float | None]] = gather_object(list(zip(range(len(rows))[share], rewards, strict=True)))
    return [reward for _, reward in sorted(gathered, key=lambda pair: pair[0])]


def verify_answers(
    encoder: PromptEncoder, rows: Sequence[Row], texts: Sequence[str], verify: Verify
) -> VerifiedAnswers:
    """Call the verifier on answers, and count their tokens."""
    rewards = rewards_of(encoder, rows, texts, verify)
    return VerifiedAnswers(list(texts), rewards, encoder.count_tokens(rows, encoder.encode_answers(texts)))


def rewards_of(encoder: PromptEncoder, rows: Sequence[Row], texts: Sequence[str], verify: Verify) -> list[float | None]:
    """Return what the verifier gives to answers; None where it does not apply."""
    answers = answers_of([row["prompt"] for row in rows], texts, encoder)
    return ask(verify, rows, answers, encoder.encode_answers(texts)) if rows else []


def is_success(reward: float) -> bool:
    """Tell whether the verifier's reward means a correct answer."""
    return reward >= DEFAULT_RULE.threshold
