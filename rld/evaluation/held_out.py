"""Scores of a model on held-out rows, per skill."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rld.types import Row

_METRIC = Path(__file__).parent / "metrics" / "solved.py"


def score(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Return per skill the share of right answers and the number of rows.

    A right answer is the gold one, or for a reasoning-gym task one that its verifier gives full credit.
    """
    scores = {}
    for skill in dict.fromkeys(row["skill"] for row in rows):
        answered = [(row, text) for row, text in zip(rows, texts, strict=True) if row["skill"] == skill]
        references = [{"answer": row["answer"], "entry": row["entry"]} for row, _ in answered]
        result = _metric().compute(predictions=[text for _, text in answered], references=references)
        scores[skill] = (float(result["solved"]), len(answered))
    return scores


@functools.cache
def _metric() -> Any:
    import evaluate  # takes seconds

    return evaluate.load(str(_METRIC), keep_in_memory=True)
