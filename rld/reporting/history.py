"""A run's folder, read: what was planned, what was logged, what came out. Reads half-finished runs as well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from rld.errors import CheckpointError
from rld.reporting.series import Point
from rld.utils import files
from rld.utils.files import Record, read_json
from rld.utils.run_folder import RunFolder

_LARGEST = 1e300
"""Values beyond are as good as infinite, and no axis can hold them."""


class _Read(BaseModel):
    """Other keys are left alone, so that a run of another version can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def of(cls, path: Path, value: Mapping[str, Any]) -> Self:
        """Return `value`, which was read from `path`, as this kind of object."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"{path} is not what rld writes: {where or 'it'}: {first['msg']}") from error


class Scored(_Read):
    """A model: how large it is, and its accuracy per skill on held-out rows, from 0 to 1."""

    parameters: int
    scores: dict[str, float]


class TeacherTokens(_Read):
    """Tokens that teachers scored, and those that were saved because a weight was 0 or the gate closed."""

    scored: float
    saved: float


class Result(_Read):
    """What a finished stage recorded. `before` and `after` are its student's scores."""

    name: str
    kind: str
    seconds: float
    flops: float
    teacher_tokens: TeacherTokens | None = None
    student: Scored
    teachers: dict[str, Scored] = {}
    before: dict[str, float]
    after: dict[str, float]


class Summary(_Read):
    """`summary.json`: true at every moment of a run."""

    recipe: str
    seed: int
    status: str
    seconds: float
    flops: float
    versions: dict[str, str] = {}
    heldout_rows: dict[str, int] = {}
    """Per skill."""
    stages: list[Result] = []
    """Those that are finished."""
    command: str | None = None
    """What the run was started with."""


class LoggedEvent(_Read):
    """A controller's decision: what changed for which skill, and from which measurement."""

    stage: str
    step: int
    kind: str
    skill: str
    about: str
    measured: str
    rule: str = ""


class PlannedStage(_Read):
    name: str
    run: str
    steps: int
    teachers: dict[str, Any] = {}


class RecipeSummary(_Read):
    """What this module needs to know of `recipe.json`."""

    name: str
    skills: dict[str, Any]
    stages: list[PlannedStage]


@dataclass(frozen=True)
class StageHistory:
    """A stage of a run: its plan, what it logged and, once it is finished, its result."""

    plan: PlannedStage
    metrics: list[Record]
    events: list[LoggedEvent]
    result: Result | None

    def keys(self) -> list[str]:
        """Return the names of all metrics, in the order in which they first appear."""
        return list(dict.fromkeys(key for record in self.metrics for key in record))

    def series(self, key: str) -> tuple[list[Point], int]:
        """Return a metric's points, and how many logged values were not numbers."""
        values = [(float(record["step"]), record[key]) for record in self.metrics if key in record]
        points = [(step, float(value)) for step, value in values if _is_number(value)]
        return points, len(values) - len(points)

    def time_shares(self) -> dict[str, float]:
        """Return which share of the time from the first logged update to the last each part took, largest first."""
        timed = [record for record in self.metrics if any(key.startswith("time/") for key in record)]
        if len(timed) < 2 or timed[-1]["seconds"] <= timed[0]["seconds"]:
            return {}
        spent: dict[str, float] = {}
        for before, record in pairwise(timed):
            for key in record:
                if key.startswith("time/") and _is_number(record[key]):  # the mean over the updates since the last line
                    seconds = record[key] * (record["step"] - before["step"])
                    spent[key.removeprefix("time/")] = spent.get(key.removeprefix("time/"), 0.0) + seconds
        whole = timed[-1]["seconds"] - timed[0]["seconds"]
        spent["rest"] = max(whole - sum(spent.values()), 0.0)
        return {part: seconds / whole for part, seconds in sorted(spent.items(), key=lambda item: -item[1])}


@dataclass(frozen=True)
class RunHistory:
    folder: Path
    recipe: Record
    """The resolved recipe, whole."""
    plan: RecipeSummary
    summary: Summary
    stages: list[StageHistory]
    """All that are planned, in order."""
    cut: list[str]
    """Files whose last line was cut off, and left out."""


def read_run(run: Path) -> RunHistory:
    """Read the folder of a run, finished or not.

    Raises:
        CheckpointError: it holds no run, or a file of it is damaged.
    """
    folder = RunFolder(run)
    recipe, summary = _object(folder.recipe), _object(folder.summary)
    plan = RecipeSummary.of(folder.recipe, recipe)
    outcome = Summary.of(folder.summary, summary)
    metrics, metrics_cut = files.read_jsonl(folder.metrics)
    for number, record in enumerate(metrics, 1):
        if "stage" not in record or not all(_is_number(record.get(key)) for key in ("step", "seconds", "flops")):
            raise CheckpointError(f"{folder.metrics}:{number} lacks stage, step, seconds or flops; take the line out")
    records, events_cut = files.read_jsonl(folder.events)
    events = [LoggedEvent.of(folder.events, record) for record in records]
    results = {result.name: result for result in outcome.stages}
    stages = [
        StageHistory(
            stage,
            [record for record in metrics if record["stage"] == stage.name],
            [event for event in events if event.stage == stage.name],
            results.get(stage.name),
        )
        for stage in plan.stages
    ]
    logs = (folder.metrics, metrics_cut), (folder.events, events_cut)
    cut = [path.name for path, is_cut in logs if is_cut]
    return RunHistory(run, recipe, plan, outcome, stages, cut)


def _object(path: Path) -> Record:
    try:
        return read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; resuming the run writes it again") from error


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < _LARGEST
