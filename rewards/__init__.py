"""Rewards: functions that score completions. Each file is a family; recipes name them as `file:function`.

A reward takes `completions`, whichever columns of the rows it needs (`question`, `answer`, `entry`, `skill`, `level`)
and `**_` for the rest, and returns one number per completion, or None for a completion that it does not apply to.
Its options are keyword-only.

A reward that compares with a gold answer may have an attribute `rejects_beginning`, a function of the same arguments:
which texts get 0 whatever follows them. A teacher's answer then need not be decoded further to know that it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

AnyReward = TypeVar("AnyReward", bound=Callable[..., Any])


def text_of(completion: Any) -> str:
    """Return the text of a completion, which is plain text or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"] or "") for message in completion if message["role"] == "assistant")


def rejects_by(rejects_beginning: Callable[..., list[bool]]) -> Callable[[AnyReward], AnyReward]:
    """Return a decorator that sets the attribute `rejects_beginning` of a reward."""

    def decorator(reward: AnyReward) -> AnyReward:
        vars(reward)["rejects_beginning"] = rejects_beginning
        return reward

    return decorator
