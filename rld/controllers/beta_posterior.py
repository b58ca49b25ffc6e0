"""What is believed of a share, such as of right answers: Beta posteriors that forget, and notice when it has changed.

A belief is `[a, b]` of Beta(a, b), a list so that it is plain JSON.
"""

from __future__ import annotations

import math
from typing import Any

Belief = list[float]

_SURPRISE, _ENOUGH = 3.0, 8
"""A share that lies so many standard deviations off, over so many attempts at least, shows that what it is of has
changed. Fewer attempts are taken together."""


def mean(belief: Belief) -> float:
    """The share that is expected."""
    return moments(belief)[0]


def moments(belief: Belief) -> tuple[float, float]:
    """Mean and variance."""
    a, b = belief
    expected = a / (a + b)
    return expected, expected * (1 - expected) / (a + b + 1)


def updated(
    belief: Belief, successes: float, attempts: int, memory: float, prior: tuple[float, float] = (1.0, 1.0)
) -> Belief:
    """Return the belief after more attempts, keeping the share `memory` of the earlier ones; without any it stays."""
    if not attempts:
        return belief
    counted = successes, attempts - successes
    return [p + memory * (old - p) + new for old, p, new in zip(belief, prior, counted, strict=True)]


def since(known: Belief) -> dict[str, Any]:
    """What was known when it was last compared with what came, and what came since."""
    return {"known": known, "right": 0, "asked": 0}


def has_changed(since: dict[str, Any], right: int, asked: int) -> bool:
    """Tell whether a share is far larger or smaller than it was; moves `since`, in place."""
    right, asked = since["right"] + right, since["asked"] + asked
    if asked < _ENOUGH:
        since.update(right=right, asked=asked)
        return False
    since.update(right=0, asked=0)
    expected, variance = moments(since["known"])
    spread = math.sqrt(expected * (1 - expected) / asked + variance)
    return abs(right / asked - expected) > _SURPRISE * spread
