"""Documents as rows to train on: the pieces of a skill's documents, each learnt once in a pass over all of them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from typing import TypeAlias

from rld.types import Row

Cut: TypeAlias = Callable[[str], list[str]]
"""Returns the pieces of a document, which make it up when they are joined."""


class Pieces:
    """The pieces of documents, in a random order that is another one in each pass.

    A row's answer is the piece. Its `is_cut` says that the document goes on behind the piece, which then has no end.

    Args:
        documents: A row for each document, with the text as its answer.
        cut: Returns the pieces of a document.
    """

    def __init__(self, documents: Iterable[Row], cut: Cut) -> None:
        self._documents = list(documents)
        self._spans: list[tuple[int, int, int]] = []  # the document of each piece, its start and its end
        for number, document in enumerate(self._documents):
            end = 0
            for piece in cut(document["answer"]):
                start, end = end, end + len(piece)
                self._spans.append((number, start, end))

    def __len__(self) -> int:
        return len(self._spans)

    def row(self, number: int, seed: str) -> Row:
        """Return the piece that is drawn after `number` others; after all, a new pass begins."""
        times, place = divmod(number, len(self))
        document, start, end = self._spans[self._order(f"{seed}:pass {times}")[place]]
        row = self._documents[document]
        return {**row, "answer": row["answer"][start:end], "is_cut": end < len(row["answer"])}

    @functools.lru_cache(maxsize=4)  # noqa: B019 - there are few such objects, and they live as long as the run
    def _order(self, seed: str) -> list[int]:
        order = list(range(len(self)))
        random.Random(seed).shuffle(order)
        return order
