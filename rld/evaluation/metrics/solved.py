"""An `evaluate` metric: the share of answers that are correct."""

from __future__ import annotations

from collections.abc import Sequence

from rld.evaluation.metric import RowMean
from rld.rollout.verifier import is_success


class Solved(RowMean):
    """The share of answers to which a judge gives 1, 0 to 1: partial credit does not count.

    Args:
        predictions: The judge's reward for each answer.
    """

    columns = {"predictions": "float64"}

    def row_values(self, predictions: Sequence[float]) -> Sequence[float]:
        return [float(is_success(reward)) for reward in predictions]
