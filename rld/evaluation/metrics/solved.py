"""An `evaluate` metric: the share of answers that are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import evaluate

from rld.recipe.registry import load

_DESCRIPTION = """Share of predictions that are exactly right. A prediction is compared with the gold answer, up to
white space around it; where the reference has an entry of a reasoning-gym task, that task's own verifier decides, and
nothing but full credit counts."""

_INPUTS = """
Args:
    predictions: Texts.
    references: Mappings of `answer` (text) and `entry` (JSON text of a reasoning-gym entry, or "").
Returns:
    solved: The share of right predictions, 0 to 1.
"""


class Solved(evaluate.Metric):  # type: ignore[misc]
    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": {"answer": text, "entry": text}}),
        )

    def _compute(self, predictions: list[str], references: list[dict[str, str]]) -> dict[str, Any]:
        verify = load("rewards", "reasoning:exact_credit", Path())
        answers, entries = ([reference[key] for reference in references] for key in ("answer", "entry"))
        credits = verify(completions=predictions, answer=answers, entry=entries)
        return {"solved": sum(credits) / len(credits)}
