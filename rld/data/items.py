"""An item, that is a question with its answer, what tells whether two are one, and the functions that make items."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Item(NamedTuple):
    """A question and its answer, before a prompt template turns them into a row."""

    question: str
    answer: str | None
    """None: the question has no single gold answer, and the verifier uses `entry`; or its label is not known."""
    entry: str = ""
    place: str = ""
    """Where it is written, such as `data.jsonl:17`; "" where it is generated."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """Of a conversation: the messages that the assistant is to answer; `question` is then their text."""
    is_document: bool = False
    """Whether it is no question: `question` is then a text to learn as a whole, and there is no answer."""


ItemFactory = Callable[[int, random.Random], Item]
"""Makes an item of a level with a random generator."""


class ItemSource(NamedTuple):
    """Where the items of a skill come from."""

    make: ItemFactory
    num_levels: int
    levels: Sequence[Sequence[Item]] | None = None
    """All items, by level. None: they are generated, and there is no end to them."""
    held_out: Sequence[Sequence[Item]] | None = None
    """The items of a file of held-out rows, by level. None: rows are held out from the others."""
    make_gold: ItemFactory | None = None
    """Makes an item that has a gold answer, where labelled rows have none too. None: `make` does."""


def question_key(question: str) -> str:
    """Return a question up to white space and the form of accents: two that share it are one question."""
    return " ".join(unicodedata.normalize("NFC", question).split())
