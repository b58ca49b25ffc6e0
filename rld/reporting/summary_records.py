"""What `summary.json` holds: the state of a run and the records of its finished stages."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rld.recipe.inputs import AcceptedChanges
from rld.reporting.exports import ExportRecord
from rld.reporting.file_records import Amount, Count, FileRecord, Share
from rld.reporting.score_records import ConfusionRecord, ModelScores, Scoring


class TeacherTokens(FileRecord):
    """Tokens that teachers scored, and tokens that they did not, because a weight was 0 or the gate was closed.

    `saved` is below 0 where the gate's own answers cost more than it saved.
    """

    scored: Amount
    saved: Annotated[float, Field(allow_inf_nan=False)]


class TeachingRecord(FileRecord):
    """What one teacher did in a stage: tokens that it read, its answers to the gate included, and prompts taught."""

    tokens: Amount
    prompts: Count


class StageResult(FileRecord):
    """The record of a finished stage. `before` and `after` are the scores of its model; `before` of a trained one."""

    name: str
    kind: str
    seconds: Amount
    flops: Amount
    flops_by_account: dict[str, Amount] = {}
    flops_by_part: dict[str, dict[str, Amount]] = {}
    """The parts of each account: of those of teachers one for each teacher."""
    watts: Amount | None = None
    """The mean power of the GPUs by their own counters; None where they have none."""
    teacher_tokens: TeacherTokens | None = None
    teaching: dict[str, TeachingRecord] = {}
    """What each teacher did whose outputs were learnt."""
    student: ModelScores
    teachers: dict[str, ModelScores] = {}
    merged: dict[str, ModelScores] = {}
    """The models that were merged."""
    before: dict[str, Share]
    after: dict[str, Share]
    below_start: dict[str, float] = {}
    """By how much the score of each skill fell, where it fell by more than chance."""
    scorings: dict[str, Scoring] = {}
    """All scores of each scoring: `before`, `after`, `teacher/NAME`, `merged/NAME`."""
    export: ExportRecord | None = None
    """Of an exported model: how it compares with the model that it was made of, and what it takes."""
    confusion: dict[str, ConfusionRecord] = {}
    """Of each skill of labels: how often the model took each gold label for each label."""

    def main_score(self, skill: str) -> str:
        """Return the name of a skill's main score."""
        return next(iter(self.scorings.get("after", {}).get(skill, {})), "solved")

    def error(self, scoring: str, skill: str) -> float | None:
        """Return the standard error of a skill's main score in a scoring; None where the run did not record it."""
        scores = self.scorings.get(scoring, {}).get(skill, {})
        return scores[name].error if (name := self.main_score(skill)) in scores else None


class LaunchRecord(FileRecord):
    """What a run trained on."""

    processes: int
    strategy: str
    """`one process`, `DDP`, `FSDP` or `DeepSpeed`."""
    device: str
    """`cpu`, or the name of the first process's GPU."""
    precision: str
    """`bf16`, `fp16` or `fp8`: mixed precision; `no`: computed in the data type of the weights."""
    remarks: list[str] = []
    """What was asked for and is not so, as sentences."""

    def __str__(self) -> str:
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        way = "" if self.strategy == "one process" else f" ({self.strategy})"
        mixed = "no mixed precision" if self.precision == "no" else f"mixed precision {self.precision}"
        return f"{count}{way} on {self.device}, {mixed}"


class Summary(FileRecord):
    """The content of `summary.json`, which is true at every moment of a run."""

    recipe: str
    seed: int
    status: str
    seconds: Amount
    flops: Amount
    launch: LaunchRecord | None = None
    input_changes: list[AcceptedChanges] = []
    versions: dict[str, str] = {}
    heldout_rows: dict[str, Count] = {}
    """The number of held-out rows of each skill."""
    stages: list[StageResult] = []
    """The finished stages, in order."""
    command: str | None = None
    """The command line that started the run."""
