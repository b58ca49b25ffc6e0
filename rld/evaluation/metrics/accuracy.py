"""An `evaluate` metric: the share of labels that are correct."""

from __future__ import annotations

from collections.abc import Sequence

from rld.evaluation.metric import RowMean


class Accuracy(RowMean):
    """The share of labels that are the gold label, 0 to 1.

    Args:
        predictions: The labels.
        references: The gold labels.
    """

    columns = {"predictions": "string", "references": "string"}

    def row_values(self, predictions: Sequence[str], references: Sequence[str]) -> Sequence[float]:
        return [float(label == gold) for label, gold in zip(predictions, references, strict=True)]
