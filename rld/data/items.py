"""An item, that is a question with its answer, and the type of functions that make items."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple


class Item(NamedTuple):
    """A question and its answer, before a prompt template turns them into a row."""

    question: str
    answer: str | None
    """None: the question has no single gold answer, and the verifier uses `entry`."""
    entry: str = ""


ItemFactory = Callable[[int, random.Random], Item]
"""Makes an item of a level with a random generator."""
