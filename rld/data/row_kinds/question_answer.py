"""Rows of a question and its gold answer."""

from __future__ import annotations

from collections.abc import Iterator

from rld.data.items import Item
from rld.data.row_kinds.fields import Fields

NAMES = ("question", "answer", "level")


def items(fields: Fields) -> Iterator[Item]:
    """Yield the item of a record; all columns that are no part of it go into its `entry`."""
    question, answer = fields.text("question"), fields.text("answer")
    yield Item(question, answer, fields.others())
