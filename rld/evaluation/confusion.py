"""Which labels a model takes for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rld.evaluation.predictions import Prediction
from rld.types import Row


class ConfusionTable(NamedTuple):
    """How often each gold label was predicted as each label.

    Attributes:
        labels: The labels that occur, in alphabetical order.
        counts: One list per gold label, with the number of its rows for each predicted label.
    """

    labels: list[str]
    counts: list[list[int]]

    @classmethod
    def of(cls, rows: Sequence[Row], predictions: Sequence[Prediction]) -> ConfusionTable:
        """Return the table of predictions for rows with labels."""
        pairs = zip(rows, predictions, strict=True)
        counts = Counter((row["answer"], prediction.answer) for row, prediction in pairs)
        labels = sorted({label for pair in counts for label in pair})
        return cls(labels, [[counts[gold, label] for label in labels] for gold in labels])
