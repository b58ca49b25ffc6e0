"""The verifier: the reward that decides which completions are correct, asked about any text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from rld.rollout.rewards import is_async

_SUCCESS = 1 - 1e-6

Verify = Callable[..., list[float | None]]
"""A reward with TRL's signature."""


def no_reward(completions: list[Any], **_: Any) -> list[float]:
    """Stand in for the verifiers of a run that has none: pure distillation."""
    return [0.0] * len(completions)


def verifier(rewards: list[Any], state: Callable[[], Any]) -> Verify | None:
    """Return the first of the rewards where it can be asked about any text, by `ask`, else None.

    Args:
        rewards: The rewards.
        state: Gives the trainer's state, which is another object once training has begun.
    """
    first = rewards[0]
    if isinstance(first, (str, nn.Module)) or is_async(first) or first.__name__ == no_reward.__name__:
        return None
    return lambda **asked: first(trainer_state=state(), log_extra=_unlogged, log_metric=_unlogged, **asked)


def _unlogged(*_: Any) -> None:
    """Stand in for TRL's `log_extra` and `log_metric`: the text is no completion of a rollout."""


def ask(
    verify: Verify, rows: Sequence[dict[str, Any]], completions: Sequence[Any], ids: Sequence[list[int]]
) -> list[float | None]:
    """Ask a reward about completions as TRL would; of chats they may be plain texts."""
    columns = {key: [row.get(key) for row in rows] for row in rows[:1] for key in row if key != "prompt"}
    prompts = [row["prompt"] for row in rows]
    said = [
        [{"role": "assistant", "content": text}] if isinstance(text, str) and not isinstance(prompt, str) else text
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    return verify(prompts=prompts, completions=said, completion_ids=list(ids), **columns)


def is_success(reward: float) -> bool:
    """Tell whether the verifier's reward means a right answer."""
    return reward >= _SUCCESS


def successes(rewards: Tensor) -> Tensor:
    """Return which completions the verifier, the first of the rewards `[B, R]`, gives 1: `[B]`."""
    return rewards[:, 0] >= _SUCCESS
