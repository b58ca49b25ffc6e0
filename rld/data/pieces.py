"""Documents as rows to train on: the pieces of a skill's documents, each learnt once in a pass over all of them."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from rld.data.stored import Stored
from rld.types import Row

Cut: TypeAlias = Callable[[str], list[str]]
"""Returns the pieces of a document, which make it up when they are joined."""


_NUM_ORDERS = 4
"""Passes of which the order is kept: rows are drawn ahead, and again where a stage begins anew."""


class Pieces:
    """The pieces of documents, on disk, in a random order that is another one in each pass.

    A row's answer is the piece. Its `is_cut` says that the document goes on behind the piece, which then has no end.

    Args:
        documents: A row for each document, with the text as its answer.
        cut: Returns the pieces of a document.
    """

    def __init__(self, documents: Iterable[Row], cut: Cut) -> None:
        self._rows = Stored(_pieces(documents, cut))
        self._orders: dict[str, array[int]] = {}  # of the last passes

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int, seed: str) -> Row:
        """Return the piece that is drawn after `number` others; after all, a new pass begins."""
        times, place = divmod(number, len(self))
        return self._rows[self._order(f"{seed}:pass {times}")[place]]

    def _order(self, seed: str) -> array[int]:
        if seed not in self._orders:
            if len(self._orders) == _NUM_ORDERS:
                del self._orders[next(iter(self._orders))]
            self._orders[seed] = array("q", range(len(self)))
            random.Random(seed).shuffle(self._orders[seed])
        return self._orders[seed]


def _pieces(documents: Iterable[Row], cut: Cut) -> Iterator[Row]:
    for document in documents:
        end = 0
        for piece in cut(document["answer"]):
            end += len(piece)
            yield {**document, "answer": piece, "is_cut": end < len(document["answer"])}
