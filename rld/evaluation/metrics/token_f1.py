"""An `evaluate` metric: the overlap of the words of answers and gold answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rld.evaluation.metric import RowMean
from rld.recipe import registry


class TokenF1(RowMean):
    """The harmonic mean of precision and recall of words, mean over rows, 0 to 1, as in `text:token_f1`: SQuAD's F1.

    Args:
        predictions: The answers.
        references: The gold answers.
    """

    columns = {"predictions": "string", "references": "string"}

    def row_values(self, predictions: Sequence[str], references: Sequence[str]) -> Sequence[float]:
        reward = registry.load("rewards", "text:token_f1", Path())
        values: Sequence[float] = reward(predictions, references)
        return values
