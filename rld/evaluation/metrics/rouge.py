"""An `evaluate` metric: the overlap of answers and gold answers as ROUGE measures it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rld.evaluation.metric import RowMean
from rld.recipe import registry


class Rouge(RowMean):
    """The F-measure of ROUGE, mean over rows, 0 to 1, as in `text:rouge`.

    Args:
        predictions: The answers.
        references: The gold answers.
        kind: `rouge1`, `rouge2` or `rougeL`.
    """

    columns = {"predictions": "string", "references": "string"}

    def row_values(self, predictions: Sequence[str], references: Sequence[str], kind: str) -> Sequence[float]:
        reward = registry.load("rewards", "text:rouge", Path())
        values: Sequence[float] = reward(predictions, references, kind=kind)
        return values
