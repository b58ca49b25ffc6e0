"""An `evaluate` metric: the share of answers that are correct."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from rld.rollout.verifier import is_success

_DESCRIPTION = "Share of answers to which a judge gives 1: partial credit does not count."

_INPUTS = """
Args:
    predictions: The judge's reward for each answer.
Returns:
    solved: The share of correct answers, 0 to 1.
"""


class Solved(evaluate.Metric):  # type: ignore[misc]
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions: list[float]) -> dict[str, Any]:
        return {"solved": sum(map(is_success, predictions)) / len(predictions)}
