"""One question with its answer, and what makes such items."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple


class Item(NamedTuple):
    """A question and its answer, before it becomes a row."""

    question: str
    answer: str | None
    """None: there is no one gold answer; the verifier needs `entry`."""
    entry: str = ""


ItemFactory = Callable[[int, random.Random], Item]
"""Makes an item of a level."""
