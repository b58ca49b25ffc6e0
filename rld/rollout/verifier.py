"""The verifier: the reward that decides which answers are correct, called on any text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from rld.models import generation
from rld.models.prompting import PromptEncoder
from rld.rollout.rewards import all_checked, checked, is_async
from rld.types import Row

_SUCCESS = 1 - 1e-6
"""Reward from which an answer counts as correct: 1, up to rounding."""

Verify = Callable[..., list[float | None]]
"""A reward with TRL's signature."""


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


def training_rewards(rewards: Any, verifier: Any, *, has_teachers: bool) -> Any:
    """Return the rewards of a training, checked, a verifier of its own first; None where there are none.

    Args:
        rewards: TRL's `reward_funcs`.
        verifier: A verifier that is not one of the rewards, or None.
        has_teachers: Whether there are teachers: then there need be no rewards.
    """
    paid = all_checked(rewards or ([no_reward] if has_teachers else None))
    return paid if verifier is None else [checked(verifier, "verifier"), *(paid or [])]


def askable(rewards: list[Any], state: Callable[[], Any]) -> Verify | None:
    """Return the first of the rewards as a function that can be called on any text; None where it can't be.

    A model, an asynchronous function and `no_reward` can't be called so.

    Args:
        rewards: The rewards.
        state: Returns the trainer's state, which is another object once training has begun.
    """
    first = rewards[0]
    if isinstance(first, (str, nn.Module)) or is_async(first) or first.__name__ == no_reward.__name__:
        return None
    return lambda **batch: first(trainer_state=state(), log_extra=_ignore, log_metric=_ignore, **batch)


def _ignore(*_: Any) -> None:
    """Stand in for TRL's `log_extra` and `log_metric`: the text is not a completion of a rollout."""


def ask(
    verify: Verify, rows: Sequence[Row], completions: Sequence[Any], completion_ids: Sequence[list[int]]
) -> list[float | None]:
    """Call a reward on completions as TRL would.

    Args:
        verify: The reward.
        rows: The row of each completion.
        completions: Texts, or lists of messages. A text that answers a chat becomes an assistant's message.
        completion_ids: The same as token ids.
    """
    columns = {key: [row.get(key) for row in rows] for row in rows[:1] for key in row if key != "prompt"}
    prompts = [row["prompt"] for row in rows]
    messages = [
        [{"role": "assistant", "content": text}] if isinstance(text, str) and not isinstance(prompt, str) else text
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    return verify(prompts=prompts, completions=messages, completion_ids=list(completion_ids), **columns)


def answer_and_verify(
    model: Any,
    encoder: PromptEncoder,
    rows: Sequence[Row],
    verify: Verify,
    *,
    max_new_tokens: int,
    alone: bool = False,
) -> VerifiedAnswers:
    """Answer the rows' prompts greedily and call the verifier on the answers.

    Args:
        model: A model on its device, or a log-probability source that generates.
        encoder: Encodes prompts for it.
        rows: The same on every process, each of which answers and verifies a share of them, unless `alone`.
        verify: The verifier.
        max_new_tokens: Greatest length of an answer.
        alone: Whether this process answers and verifies all its rows itself, because they are its own.

    Returns:
        The answers to all rows, on every process.
    """
    answers = generation.generate(model, encoder, rows, max_new_tokens=max_new_tokens, alone=alone)
    texts = [answer.text for answer in answers]
    if alone:
        return verify_answers(encoder, rows, texts, verify)
    state = PartialState()
    share = slice(state.process_index, None, state.num_processes)
    verified = verify_answers(encoder, rows[share], texts[share], verify)
    numbers = range(len(rows))[share]
    gathered: list[tuple[int, float | None]] = gather_object(list(zip(numbers, verified.rewards, strict=True)))
    rewards = [reward for _, reward in sorted(gathered, key=lambda pair: pair[0])]
    return VerifiedAnswers(texts, rewards, _count_tokens(encoder, rows, texts))


def verify_answers(
    encoder: PromptEncoder, rows: Sequence[Row], texts: Sequence[str], verify: Verify
) -> VerifiedAnswers:
    """Call the verifier on answers, and count their tokens."""
    rewards = ask(verify, rows, texts, [encoder.encode_answer(text) for text in texts]) if rows else []
    return VerifiedAnswers(list(texts), rewards, _count_tokens(encoder, rows, texts))


def _count_tokens(encoder: PromptEncoder, rows: Sequence[Row], texts: Sequence[str]) -> int:
    return encoder.count_tokens(rows, [encoder.encode_answer(text) for text in texts])


def is_success(reward: float) -> bool:
    """Tell whether the verifier's reward means a correct answer."""
    return reward >= _SUCCESS


def successes(rewards: Tensor) -> Tensor:
    """Return which completions the verifier, the first of the rewards `[B, R]`, gives 1: `[B]` bool."""
    return rewards[:, 0] >= _SUCCESS
