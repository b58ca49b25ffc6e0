"""A limit of time on waiting for asynchronous rewards, which run in a thread of TRL's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rld.errors import RewardError
from rld.rollout.rewards import is_async
from rld.utils.user_calls import UserCodeTimeout, user_code

_CALLS_OF_A_BATCH = 2
"""Time limits that an asynchronous reward may use up for a batch: one for all its rows, and then one to find the row at
which it fails."""


@contextmanager
def limited_wait(rewards: Sequence[Any]) -> Iterator[None]:
    """Limit the time in which the block asks rewards, for an asynchronous one may block the thread that all run in.

    Raises:
        RewardError: one did; it is named if it is the only asynchronous one.
    """
    limits = {reward.__name__: reward.seconds for reward in rewards if hasattr(reward, "seconds")}
    names = [reward.__name__ for reward in rewards if hasattr(reward, "seconds") and is_async(reward)]
    if not names:
        yield
        return
    try:
        with user_code(_CALLS_OF_A_BATCH * sum(limits.values())):
            yield
    except UserCodeTimeout as error:
        fix = "one that is asynchronous should await, and never block (as time.sleep and requests do)"
        raise RewardError(f"reward {' or '.join(map(repr, names))} {error}; {fix}") from error
