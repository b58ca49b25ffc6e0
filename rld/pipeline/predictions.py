"""Write and read the predictions of a scoring: what a model said of each held-out row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rld.evaluation.predictions import Prediction
from rld.types import Row
from rld.utils import files


def write_predictions(path: Path, rows: Sequence[Row], predictions: Sequence[Prediction]) -> None:
    """Write one line per row, in place of a file that is there."""
    pairs = zip(rows, predictions, strict=True)
    files.write_jsonl(path, [prediction.as_record(row) for row, prediction in pairs])


def read_predictions(path: Path, rows: Sequence[Row]) -> list[Prediction] | None:
    """Return the predictions for rows, in their order; None where the file is missing, damaged or of other rows."""
    lines = files.read_jsonl(path)
    if lines.damaged or len(lines.records) != len(rows):
        return None
    predictions = [Prediction.from_record(record) for record in lines.records]
    records = [prediction.as_record(row) for row, prediction in zip(rows, predictions, strict=True)]
    return predictions if records == lines.records else None
