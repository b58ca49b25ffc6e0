"""Write and read `samples.jsonl`: answers to a few held-out rows, before and after each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rld.evaluation.held_out import Evaluation, SampledAnswer
from rld.types import Row
from rld.utils import files


def write_samples(
    path: Path,
    stage: str,
    rows: Sequence[Row],
    *,
    before: Evaluation,
    after: Evaluation,
    teachers: Mapping[str, Evaluation],
) -> None:
    """Write one line per row; they replace the lines of this stage that the file has.

    Args:
        rows: The rows that the samples of all evaluations belong to, in their order.
        before: The student's evaluation before the stage; an evaluation without samples becomes null.
    """
    records = []
    for i, row in enumerate(rows):
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


def read_answers_after(path: Path, stage: str) -> list[SampledAnswer]:
    """Return the answers of a finished stage's student; empty where the file has none, or a line is damaged."""
    lines = files.read_jsonl(path)
    records = [record.get("after") for record in lines.records if record.get("stage") == stage]
    try:
        answers = [SampledAnswer(record["answer"], record["is_correct"]) for record in records if record is not None]
    except (KeyError, TypeError):
        return []
    return [] if lines.damaged else answers


def _record(evaluation: Evaluation, index: int) -> dict[str, Any] | None:
    return evaluation.samples[index]._asdict() if evaluation.samples else None
