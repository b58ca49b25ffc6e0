"""An `evaluate` metric: the share of answers with the words of the gold answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rld.evaluation.metric import RowMean
from rld.recipe import registry


class WordMatch(RowMean):
    """The share of answers with the words of the gold answer, in its order, as in `text:word_match`.

    Args:
        predictions: The answers.
        references: The gold answers.
    """

    columns = {"predictions": "string", "references": "string"}

    def row_values(self, predictions: Sequence[str], references: Sequence[str]) -> Sequence[float]:
        reward = registry.load("rewards", "text:word_match", Path())
        values: Sequence[float] = reward(predictions, references)
        return values
