"""The results of an ablation's runs: scores over compute, summaries of each arm, and differences between arms.

Compute is FLOPs as the runs count them: sampling, teachers, gate, probes and training, not the scoring of held-out
rows. Stages that are the same in all arms are charged to none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, Field, ValidationError

from rld.ablation import statistics
from rld.errors import CheckpointError
from rld.reporting.history import StageHistory, read_run
from rld.reporting.metric_names import SCORE
from rld.reporting.series import Point
from rld.utils.files import read_json, write_json
from rld.utils.messages import tell
from rld.utils.run_folder import ABLATION_RESULT

Measure: TypeAlias = Literal["final", "at_equal_flops", "mean_to_equal_flops"]

MEASURES: tuple[Measure, ...] = ("final", "at_equal_flops", "mean_to_equal_flops")
"""Scores of a run, means over skills: at its end; when it had spent `AblationResult.flops`; and the mean over compute
from `AblationResult.start` to there."""

TARGET_SHARE = 0.9
"""The target that arms are timed to, as a share of the best arm's final score."""


@dataclass(frozen=True)
class RunOutcome:
    """One finished run.

    Attributes:
        folder: The run's folder.
        scores: The main score of each skill at the end.
        curve: FLOPs spent so far, and the scores then.
        num_scored: Tokens that teachers scored in the compared stage.
    """

    arm: str
    seed: int
    folder: Path
    scores: dict[str, float]
    curve: list[tuple[float, dict[str, float]]]
    num_scored: int

    @property
    def flops(self) -> float:
        """FLOPs that the run is charged."""
        return self.curve[-1][0]

    @property
    def stage_flops(self) -> float:
        """FLOPs of the compared stage and of the stages after it."""
        return self.curve[-1][0] - self.curve[0][0]

    @property
    def mean(self) -> float:
        return fmean(self.scores.values())

    @property
    def worst(self) -> float:
        return min(self.scores.values())

    def measured(self, measure: Measure, start: float, flops: float) -> float:
        """Return one of `MEASURES`."""
        if measure == "final":
            return self.mean
        if measure == "at_equal_flops":
            return statistics.value_at(self.points(), flops)
        return statistics.area(self.points(), start, flops)

    def points(self, skill: str | None = None) -> list[Point]:
        """Return the score over FLOPs, of a skill or the mean over skills."""
        return [(x, fmean(scores.values()) if skill is None else scores[skill]) for x, scores in self.curve]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; a single seed has no deviation."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class ArmSummary:
    """An arm over its seeds.

    Attributes:
        final, at_equal_flops, mean_to_equal_flops: As `MEASURES` says; None where a run was finished before another
            had begun its compared stage.
        worst: The final score of the worst skill.
        flops_to_target: Median FLOPs until the target is reached; None where most seeds never reach it.
        num_reached: Seeds that reach the target.
        num_scored: Mean number of tokens that teachers scored.
    """

    arm: str
    num_seeds: int
    final: Spread
    worst: Spread
    at_equal_flops: Spread | None
    mean_to_equal_flops: Spread | None
    flops: Spread
    flops_to_target: float | None
    num_reached: int
    num_scored: float


@dataclass(frozen=True)
class PairedDifference:
    """An arm minus the first one by one measure, on the seeds that both finished.

    Attributes:
        interval: The 95% interval, not corrected for the number of intervals; None for a single seed.
        num_better: Seeds on which the arm is better than the first.
        p: The p-value, corrected for the number of arms.
    """

    arm: str
    measure: Measure
    num_seeds: int
    mean: float
    interval: tuple[float, float] | None
    num_better: int
    p: float


@dataclass(frozen=True)
class AblationResult:
    """The whole result of an ablation.

    Attributes:
        arms: The overrides of each arm.
        start: FLOPs from which arms are compared: the most that a run spent before its compared stage began.
        flops: FLOPs up to which arms are compared: the least that a run spent in all.
        target: `TARGET_SHARE` of the best arm's final score.
    """

    recipe: str
    arms: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    skills: Sequence[str]
    runs: Sequence[RunOutcome]
    start: float
    flops: float
    target: float
    summaries: Sequence[ArmSummary]
    differences: Sequence[PairedDifference]

    def runs_of(self, arm: str) -> list[RunOutcome]:
        return [run for run in self.runs if run.arm == arm]


def write_result(result: AblationResult, folder: Path) -> None:
    """Write a result to the ablation's folder, as JSON; the folders of runs are relative to it."""
    record = asdict(result)
    for run, entry in zip(result.runs, record["runs"], strict=True):
        entry["folder"] = run.folder.relative_to(folder).as_posix()
        entry |= {"mean": run.mean, "worst": run.worst, "flops": run.flops}
        entry["curve"] = [{"flops": flops, "scores": scores} for flops, scores in run.curve]
    write_json(folder / ABLATION_RESULT, record)


class _PointRecord(BaseModel):
    flops: float
    scores: dict[str, float]


class _RunRecord(BaseModel):
    arm: str
    seed: int
    folder: str
    scores: dict[str, float] = Field(min_length=1)
    curve: list[_PointRecord] = Field(min_length=1)
    num_scored: int


class _ResultRecord(BaseModel):
    """What is read of an ablation's file; it has more, which is computed anew."""

    recipe: str
    arms: dict[str, list[str]]
    seeds: list[int]
    runs: list[_RunRecord] = Field(min_length=1)


def read_result(folder: Path) -> AblationResult:
    """Read what `write_result` wrote; summaries and differences are computed anew.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path, fix = folder / ABLATION_RESULT, "the same rld ablate writes it again, and repeats no finished run"
    try:
        record = _ResultRecord.model_validate(read_json(path))
        scores = [scores for run in record.runs for scores in (run.scores, *(point.scores for point in run.curve))]
        skills = {frozenset(names) for names in scores}
        if len(skills) > 1 or any(run.arm not in record.arms for run in record.runs):
            raise CheckpointError(f"{path} is damaged: its runs have different skills, or arms that it does not list")
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(f"{path} is damaged: {key} is not what rld writes; {fix}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {fix}") from error
    runs = [
        RunOutcome(
            run.arm,
            run.seed,
            folder / run.folder,
            run.scores,
            [(point.flops, point.scores) for point in run.curve],
            run.num_scored,
        )
        for run in record.runs
    ]
    return compare(record.recipe, record.arms, record.seeds, runs)


def is_finished(folder: Path) -> bool:
    """Tell whether a folder holds a run that is done, with the results of all its stages; not if they are damaged."""
    try:
        history = read_run(folder)
    except CheckpointError:
        return False
    return history.summary.status == "done" and all(stage.result is not None for stage in history.stages)


def read_outcome(arm: str, seed: int, folder: Path, *, index: int, num_shared: int) -> RunOutcome:
    """Read a finished run.

    Args:
        index: The index of the compared stage; the stages after it belong to the run's curve.
        num_shared: The number of stages, from the first, that are charged to no arm.
    """
    history = read_run(folder)
    for note in history.notes:
        tell(f"{folder}: {note}")
    results = history.summary.stages
    uncharged = sum(result.flops for result in results[:num_shared])
    curve = [(sum(result.flops for result in results[num_shared:index]), results[index].before)]
    for i, stage in enumerate(history.stages[index:], index):
        assert stage.result is not None  # the run is finished
        if not stage.result.before:
            continue  # it trains no model, so the curve has no point for it
        skills = list(stage.result.after)
        curve += [(r["flops"] - uncharged, scores) for r in stage.metrics if (scores := _scores(r, skills))]
        curve.append((sum(result.flops for result in results[num_shared : i + 1]), stage.result.after))
    return RunOutcome(arm, seed, folder, curve[-1][1], curve, _num_scored(history.stages[index]))


def _scores(record: Mapping[str, Any], skills: Sequence[str]) -> dict[str, float]:
    return {skill: record[SCORE + skill] for skill in skills if SCORE + skill in record}


def _num_scored(stage: StageHistory) -> int:
    return int(max((record.get("tokens/scored", 0) for record in stage.metrics), default=0))


def compare(
    recipe: str, arms: Mapping[str, Sequence[str]], seeds: Sequence[int], runs: Sequence[RunOutcome]
) -> AblationResult:
    """Compare finished runs, at least one, with those of the first arm that has any.

    Args:
        recipe: The recipe's name.
        arms: The overrides of each arm.
    """
    start, flops = max(run.curve[0][0] for run in runs), min(run.flops for run in runs)
    groups = [group for arm in arms if (group := [run for run in runs if run.arm == arm])]
    target = TARGET_SHARE * max(fmean(run.mean for run in group) for group in groups)
    measures = MEASURES if start < flops else MEASURES[:1]
    return AblationResult(
        recipe,
        arms,
        seeds,
        skills=list(runs[0].scores),
        runs=runs,
        start=start,
        flops=flops,
        target=target,
        summaries=[_summary(group, start, flops, target) for group in groups],
        differences=[difference for measure in measures for difference in _differences(groups, measure, start, flops)],
    )


def _summary(runs: Sequence[RunOutcome], start: float, flops: float, target: float) -> ArmSummary:
    reached = [statistics.reached(run.points(), target) for run in runs]
    middle = median(float("inf") if x is None else x for x in reached)

    def spread(measure: Measure) -> Spread:
        return Spread.of([run.measured(measure, start, flops) for run in runs])

    return ArmSummary(
        runs[0].arm,
        len(runs),
        final=spread("final"),
        worst=Spread.of([run.worst for run in runs]),
        at_equal_flops=spread("at_equal_flops") if start < flops else None,
        mean_to_equal_flops=spread("mean_to_equal_flops") if start < flops else None,
        flops=Spread.of([run.flops for run in runs]),
        flops_to_target=None if middle == float("inf") else middle,
        num_reached=sum(x is not None for x in reached),
        num_scored=fmean(run.num_scored for run in runs),
    )


def _differences(
    arms: Sequence[Sequence[RunOutcome]], measure: Measure, start: float, flops: float
) -> list[PairedDifference]:
    """Compare arms with the first on the seeds that both have; an arm without a common seed is left out."""
    first = {run.seed: run.measured(measure, start, flops) for run in arms[0]}
    compared = []
    for runs in arms[1:]:
        pairs = [run.measured(measure, start, flops) - first[run.seed] for run in runs if run.seed in first]
        if pairs:
            num_better, p = sum(value > 0 for value in pairs), statistics.sign_flips(pairs)
            interval = statistics.bootstrap(pairs)
            compared.append(PairedDifference(runs[0].arm, measure, len(pairs), fmean(pairs), interval, num_better, p))
    corrected = statistics.holm([difference.p for difference in compared])
    return [replace(difference, p=p) for difference, p in zip(compared, corrected, strict=True)]
