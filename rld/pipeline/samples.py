"""Write `samples.jsonl`: answers to a few held-out rows, before and after each stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rld.evaluation.held_out import Evaluation, HeldOutEvaluator
from rld.rollout.verifier import is_success
from rld.utils import files


def write_samples(
    path: Path,
    stage: str,
    evaluator: HeldOutEvaluator,
    *,
    before: Evaluation,
    after: Evaluation,
    teachers: Mapping[str, Evaluation],
) -> None:
    """Write one line per row of the sample; they replace the lines of this stage that the file has.

    Args:
        evaluator: What has made the evaluations.
        before: The student's evaluation before the stage; an evaluation without predictions becomes null.
    """
    records = []
    for i in evaluator.sample_indices:
        row = evaluator.rows[i]
        records.append(
            {
                "stage": stage,
                "skill": row["skill"],
                "prompt": row["prompt"],
                "gold": row["answer"],
                "before": _record(before, i),
                "after": _record(after, i),
                "teachers": {name: _record(evaluation, i) for name, evaluation in teachers.items()},
            }
        )
    files.filter_jsonl(path, lambda record: record.get("stage") != stage)
    files.append_jsonl(path, records)


def _record(evaluation: Evaluation, index: int) -> dict[str, Any] | None:
    if not evaluation.predictions:
        return None
    prediction = evaluation.predictions[index]
    return {"answer": prediction.answer, "is_correct": is_success(prediction.reward or 0.0)}
