"""Put the folder of a run in order before the run goes on: what an earlier process left behind, and what is damaged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rld.errors import CheckpointError
from rld.utils import files
from rld.utils.manifest import damage, file_record, has_manifest, read_manifest
from rld.utils.messages import tell
from rld.utils.run_folder import RunFolder, stage_record_path


def elapsed_seconds(folder: RunFolder) -> float:
    """Return how long a run has run so far, by `summary.json` and by its log, which is newer where it was killed."""
    if not folder.summary.is_file():
        return 0.0
    try:
        seconds = files.read_json(folder.summary).get("seconds")
    except CheckpointError:
        seconds = None
    if not files.is_number(seconds):
        name = folder.metrics.name
        tell(f"{folder.summary} is damaged; it is written anew, with the time of the last line of {name}")
    logged = [record.get("seconds") for record in files.read_jsonl(folder.metrics).records]
    return max((float(value) for value in [seconds, *logged] if files.is_number(value)), default=0.0)


def put_in_order(folder: RunFolder, stages: Sequence[str]) -> None:
    """Remove what earlier processes left behind, and the records of finished stages whose results are damaged.

    A record that is damaged itself is restored from `summary.json`. The caller holds the folder's lock.
    """
    for parent in [folder.path, *(path for path in folder.path.rglob("*") if path.is_dir())]:
        files.remove_drafts(parent)
    _move_results(folder)
    for stage in stages:
        result = folder.stage_result(stage)
        if not result.is_dir():
            continue
        problem = damage(result)
        if problem is not None and has_manifest(result) and _restore_record(folder, stage, result):
            continue
        if problem is not None:
            tell(f"{result} {problem}, so stage '{stage}' is not finished")
            stage_record_path(result).unlink(missing_ok=True)


def _move_results(folder: RunFolder) -> None:
    """Move the result of a stage that was the last one, and is not any more, and of the stage that is it now."""
    name = _recorded_name(folder.student)
    if name is not None and name != folder.last_stage:
        folder.models.mkdir(exist_ok=True)
        files.remove_folder(folder.models / name)
        files.move_folder(folder.student, folder.models / name)
    if folder.last_stage is not None and not folder.student.exists():
        result = folder.models / folder.last_stage
        if _recorded_name(result) == folder.last_stage:
            files.move_folder(result, folder.student)


def _recorded_name(result: Path) -> str | None:
    """Return the name of the stage that has made a result; None where its record is missing or damaged."""
    path = stage_record_path(result)
    try:
        name = files.read_json(path).get("name") if path.is_file() else None
    except CheckpointError:
        return None
    return name if isinstance(name, str) else None


def repeated_seconds(folder: RunFolder, finished: Collection[str]) -> float:
    """Return the seconds of the stages in `summary.json` that run again, because they are not in `finished`."""
    try:
        stages = files.read_json(folder.summary).get("stages") if folder.summary.is_file() else []
    except CheckpointError:
        return 0.0
    records = [record for record in stages if isinstance(record, dict)] if isinstance(stages, list) else []
    seconds = [record.get("seconds") for record in records if record.get("name") not in finished]
    return sum(float(value) for value in seconds if files.is_number(value))


def _restore_record(folder: RunFolder, stage: str, result: Path) -> bool:
    """Write the record of a stage from the summary, and return whether its result is sound then."""
    path = stage_record_path(result)
    expected = read_manifest(result).get(path.name)
    if damage(result, unless=[path.name]) is not None:
        return False
    try:
        stages = files.read_json(folder.summary).get("stages")
    except CheckpointError:
        return False
    for record in stages if isinstance(stages, list) else []:
        if isinstance(record, dict) and record.get("name") == stage:
            files.write_json(path, record)
            if file_record(path) == expected:
                tell(f"{path} was damaged; it is restored from {folder.summary.name}")
                return True
    return False
