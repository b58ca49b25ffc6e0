"""What a record of a file means. To add a kind, write a module with `NAMES` and `items` and add it to `ROW_KINDS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from rld.data.items import Item
from rld.data.row_kinds import question_answer
from rld.data.row_kinds.fields import Fields


class RowKind(NamedTuple):
    """A kind of rows.

    Attributes:
        names: The names of the values that it reads, which a skill's `columns` may lead to other columns.
        items: Yields the items of a record; raises ValueError if the record is not of this kind.
    """

    names: tuple[str, ...]
    items: Callable[[Fields], Iterator[Item]]


ROW_KINDS: dict[str, RowKind] = {
    "question_answer": RowKind(question_answer.NAMES, question_answer.items),
}
"""The kinds of rows by their name in a recipe."""
