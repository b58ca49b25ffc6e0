"""Reads the folder of a run, finished or not: its recipe, its log, and the results of its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from rld.errors import CheckpointError
from rld.recipe.prices import Prices
from rld.reporting.file_records import LARGEST, Count, FileRecord
from rld.reporting.metric_names import TIME
from rld.reporting.series import Point
from rld.reporting.summary_records import StageResult, Summary
from rld.utils import files
from rld.utils.files import Record
from rld.utils.run_folder import RunFolder

T = TypeVar("T")

_PHRASES = {
    "teacher off": "teacher {about} switched off for {skill}",
    "teacher on": "teacher {about} switched on for {skill}",
    "teacher joined": "teacher {about} joined",
    "teacher left": "teacher {about} left",
    "teacher dropped": "teacher {about} no longer teaches",
    "signal off": "{about} switched off for {skill}",
    "signal on": "{about} switched on for {skill}",
    "phase": "{skill}: {about}",
    "skill forgotten": "{skill} starts anew",
    "audit alarm": "the reward is not trusted for {skill}",
    "audit calm": "the reward is trusted again for {skill}",
    "retention on": "{skill} has lost too much and is held to the start of the stage",
    "retention off": "{skill} is no longer held to the start of the stage",
    "retention infeasible": "{skill} can't be held to the start of the stage",
    "budget exceeded": "the student is too far from the start of the stage",
    "budget kept": "the student is near the start of the stage again",
    "equal rewards": "reward {about} told no completions of a prompt apart",
    "gold answers off": "no gold answers are learnt on {skill}",
    "gold answers of teachers": "correct answers of teachers are learnt on {skill} in place of the rows'",
    "gold answers bare": "gold answers of rows are not learnt on {skill}, because they are bare results",
    "gold answers short": "gold answers are learnt on {skill} that may be bare results",
    "gold answers repeat": "gold answers repeat on {skill}: from now on costs set their share",
    "transfer on": "{skill} helps {about} again and gets prompts for it",
    "transfer off": "{skill} does not help {about}",
    "capacity gap": "{skill}: the student no longer comes closer to {about}, which is better",
    "capacity gap closed": "{skill}: {about} is not ahead or does not teach now, or the student comes closer",
    "difficulty": "{skill}: {about}",
    "prompts replaced": "{skill}: {about} replaced",
    "stage ended": "the stage ended by its rule {about}",
    "update skipped": "the update changed no weight",
    "no gate": "{about} may teach on all prompts",
    "level up": "the level of {skill} rises {about}",
    "level down": "the level of {skill} falls {about}",
    "change": "{skill}: {about}",
}
"""What happened, by an event's kind."""


class LoggedEvent(FileRecord):
    """A line of `events.jsonl`: what changed, for which skill, and from which measurement."""

    stage: str
    step: Count
    kind: str
    skill: str
    about: str
    measured: str
    rule: str = ""

    @property
    def sentence(self) -> str:
        """What happened, and why: `teacher a switched off for skill s: it answered 1% of prompts correctly (rule)`."""
        skill = self.skill if self.skill == "all skills" else f"skill {self.skill}"
        phrase = _PHRASES.get(self.kind, "{skill}: {kind}, {about}").format(
            skill=skill, kind=self.kind, about=self.about
        )
        return f"{phrase}: {self.measured}" + (f" ({self.rule})" if self.rule else "")


class AnswerRecord(FileRecord):
    """The answer of a model to a held-out row, and whether it is correct."""

    answer: str
    is_correct: bool


class SampleRecord(FileRecord):
    """A line of `samples.jsonl`: a held-out row, and the answers of the stage's student and teachers."""

    stage: str
    skill: str
    prompt: str | list[dict[str, Any]]
    gold: str
    before: AnswerRecord | None = None
    after: AnswerRecord | None = None
    teachers: dict[str, AnswerRecord | None] = {}

    @property
    def question(self) -> str:
        """The prompt as text: of chat messages the last one."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])


class PlannedStage(FileRecord):
    """What the report needs of a stage in `recipe.json`."""

    name: str
    kind: str
    steps: Count = 0
    """0 for a stage that does not train."""
    stop: dict[str, Any] = {}
    """The rules that may end it earlier; those that are not set are null or empty."""
    teachers: dict[str, Any] = {}
    teacher: str | None = None
    """The model whose answers it fine-tunes on."""
    student: str | None = None
    """The model that it trains."""
    model: str | None = None
    """The model that it cuts, scores or exports."""
    models: list[str] = []
    """The models that it merges."""
    skills: list[str] | None = None
    """The skills whose rows it reads; None: all."""
    signals: dict[str, Any] = {}
    """The options of its signals; null where one is off."""

    @property
    def teacher_names(self) -> list[str]:
        """The names of its teachers."""
        return list(self.teachers) if self.teacher is None else [self.teacher]

    @property
    def ends_early(self) -> bool:
        """Whether a rule may end it before its last step."""
        return any(self.stop.values())


class RecipeSummary(FileRecord):
    """What the report needs of `recipe.json`."""

    name: str
    skills: dict[str, Any]
    stages: list[PlannedStage]
    prices: Prices | None = None

    def learns_gold_first(self, name: str, skills: Iterable[str]) -> bool:
        """Return whether the model of a stage is fine-tuned on gold answers of all these skills, there or before."""
        models: set[str | None] = {name}
        rest = set(skills)
        for stage in reversed(self.stages):  # those that a model comes from are earlier ones
            if stage.name in models:
                models |= {stage.student, stage.model, *stage.models}
                if stage.kind == "sft" and stage.teacher is None:
                    rest -= rest if stage.skills is None else set(stage.skills)
        return not rest


@dataclass(frozen=True)
class StageHistory:
    """A stage of a run: its plan, its log and, once it is finished, its result."""

    plan: PlannedStage
    metrics: list[Record]
    events: list[LoggedEvent]
    result: StageResult | None
    samples: list[SampleRecord] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The last logged update; 0 before the first."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    def metric_names(self) -> list[str]:
        """Return the names of all metrics, in the order in which they first appear."""
        return list(dict.fromkeys(key for record in self.metrics for key in record))

    def series(self, key: str) -> tuple[list[Point], int]:
        """Return a metric's points, and how many logged values were not numbers."""
        values = [(float(record["step"]), record[key]) for record in self.metrics if key in record]
        points = [(step, float(value)) for step, value in values if _is_number(value)]
        return points, len(values) - len(points)

    def time_shares(self) -> dict[str, float]:
        """Return the share of each part in the time from the first logged update to the last, largest first."""
        timed = [record for record in self.metrics if any(key.startswith(TIME) for key in record)]
        if len(timed) < 2 or timed[-1]["seconds"] <= timed[0]["seconds"]:
            return {}
        seconds: dict[str, float] = {}
        for previous, record in pairwise(timed):
            for key in record:
                if key.startswith(TIME) and _is_number(record[key]):  # the mean over the updates since the last line
                    part, num_updates = key.removeprefix(TIME), record["step"] - previous["step"]
                    seconds[part] = seconds.get(part, 0.0) + record[key] * num_updates
        total = timed[-1]["seconds"] - timed[0]["seconds"]
        seconds["rest"] = max(total - sum(seconds.values()), 0.0)
        return {part: value / total for part, value in sorted(seconds.items(), key=lambda item: -item[1])}


@dataclass(frozen=True)
class RunHistory:
    """All that a run's folder tells.

    Attributes:
        recipe: The whole resolved recipe.
        stages: All planned stages, in order.
        notes: Sentences about damaged lines of the logs, which are left out, and about inputs that were changed.
    """

    folder: Path
    recipe: Record
    plan: RecipeSummary
    summary: Summary
    stages: list[StageHistory]
    notes: list[str]


def read_run(run: Path) -> RunHistory:
    """Read the folder of a run, finished or not.

    Raises:
        CheckpointError: it holds no run, or a file of it is damaged.
    """
    folder = RunFolder(run)
    recipe, summary = _object(folder.recipe), _object(folder.summary)
    plan = RecipeSummary.parse(folder.recipe, recipe)
    outcome = Summary.parse(folder.summary, summary)
    metrics, metrics_note = _lines(folder.metrics, _metric_line)
    events, events_note = _lines(folder.events, LoggedEvent.model_validate)
    samples, samples_note = _lines(folder.samples, SampleRecord.model_validate)
    results = {result.name: result for result in outcome.stages}
    stages = [
        StageHistory(
            stage,
            [record for record in metrics if record["stage"] == stage.name],
            [event for event in events if event.stage == stage.name],
            results.get(stage.name),
            [sample for sample in samples if sample.stage == stage.name],
        )
        for stage in plan.stages
    ]
    notes = [note for note in (metrics_note, events_note, samples_note) if note]
    notes += [str(change) for change in outcome.input_changes]
    return RunHistory(run, recipe, plan, outcome, stages, notes)


def _object(path: Path) -> Record:
    try:
        return files.read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; resuming the run writes it again") from error


def _lines(path: Path, parse: Callable[[Record], T]) -> tuple[list[T], str]:
    """Return the lines of a log, parsed, and a note about those that are damaged and left out."""
    lines, parsed = files.read_jsonl(path), list[T]()
    num_damaged = len(lines.damaged)
    for record in lines.records:
        try:
            parsed.append(parse(record))
        except ValueError:
            num_damaged += 1
    if num_damaged == 1 and lines.damaged == [len(lines.records) + 1]:
        return parsed, f"The last line of {path.name} is incomplete, as happens when a run is killed; it is left out."
    return parsed, f"{num_damaged} damaged lines of {path.name} are left out." if num_damaged else ""


def _metric_line(record: Record) -> Record:
    """Return a line of `metrics.jsonl`.

    Raises:
        ValueError: it lacks what every line has.
    """
    if not isinstance(record.get("stage"), str) or not all(
        _is_number(record.get(key)) for key in ("step", "seconds", "flops")
    ):
        raise ValueError("it lacks stage, step, seconds or flops")
    return record


def _is_number(value: object) -> TypeGuard[float]:
    return files.is_number(value) and abs(value) < LARGEST
