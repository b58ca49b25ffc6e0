"""What the runs of an ablation came to: their curves over compute, what sums them up, and how they differ.

Compute is FLOPs as the runs count them: sampling, teachers, gate, probes and training, not the scoring of held-out
rows. Stages that all arms have alike are charged to none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal, TypeAlias

from rld.ablation import statistics
from rld.reporting.history import RunHistory, read_run
from rld.reporting.series import Point

Measure: TypeAlias = Literal["final", "even", "area"]

MEASURES: tuple[Measure, ...] = ("final", "even", "area")
"""Means over skills: at the end; when `AblationResult.flops` are spent; on average
from `AblationResult.start` to then."""

NEAR = 0.9
"""Compute is compared to this share of the best arm's final score."""


@dataclass(frozen=True)
class RunOutcome:
    """One finished run.

    Attributes:
        scores: Held-out accuracy per skill at the end.
        curve: FLOPs so far, and accuracy per skill then.
        num_scored: Tokens that teachers have scored in the compared stage.
    """

    arm: str
    seed: int
    folder: Path
    scores: dict[str, float]
    curve: list[tuple[float, dict[str, float]]]
    num_scored: int

    @property
    def flops(self) -> float:
        return self.curve[-1][0]

    @property
    def own_flops(self) -> float:
        """Those of the compared stage and what comes after it."""
        return self.curve[-1][0] - self.curve[0][0]

    @property
    def mean(self) -> float:
        return fmean(self.scores.values())

    @property
    def worst(self) -> float:
        return min(self.scores.values())

    def measured(self, measure: Measure, start: float, flops: float) -> float:
        """What one of `MEASURES` is for this run."""
        if measure == "final":
            return self.mean
        if measure == "even":
            return statistics.value_at(self.points(), flops)
        return statistics.area(self.points(), start, flops)

    def points(self, skill: str | None = None) -> list[Point]:
        """Accuracy over FLOPs, of a skill or the mean over skills."""
        return [(x, fmean(scores.values()) if skill is None else scores[skill]) for x, scores in self.curve]


@dataclass(frozen=True)
class Spread:
    """A number over seeds; no deviation of a single one."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class ArmSummary:
    """An arm over its seeds.

    Attributes:
        final, even, area: What `MEASURES` says; None where one run had not begun when another was done.
        to_near: Median FLOPs to `NEAR` of the best arm's final score; None where most seeds never were there.
    """

    arm: str
    num_seeds: int
    final: Spread
    worst: Spread
    even: Spread | None
    area: Spread | None
    flops: Spread
    to_near: float | None
    num_near: int
    num_scored: float


@dataclass(frozen=True)
class PairedDifference:
    """An arm minus the first one by one measure, on the seeds that both finished.

    Attributes:
        interval: 95%, not corrected for the number of intervals; None for a single seed.
        num_won: Seeds on which the arm is better than the first.
        p: Corrected for the number of arms.
    """

    arm: str
    measure: Measure
    num_seeds: int
    mean: float
    interval: tuple[float, float] | None
    num_won: int
    p: float


@dataclass(frozen=True)
class AblationResult:
    """All of an ablation.

    Attributes:
        start: What was spent before the compared stage began, where most was.
        flops: What every run has spent: the least that any spent in all.
        target: `NEAR` of the best arm's final score.
    """

    recipe: str
    arms: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    skills: Sequence[str]
    runs: Sequence[RunOutcome]
    start: float
    flops: float
    target: float
    standings: Sequence[ArmSummary]
    differences: Sequence[PairedDifference]

    def of(self, arm: str) -> list[RunOutcome]:
        return [run for run in self.runs if run.arm == arm]

    def as_json(self, folder: Path) -> dict[str, Any]:
        """All of it as plain values; folders are relative to `folder`."""
        whole = asdict(self)
        whole["arms"] = {name: list(overrides) for name, overrides in self.arms.items()}
        for run, entry in zip(self.runs, whole["runs"], strict=True):
            entry["folder"] = run.folder.relative_to(folder).as_posix()
            entry |= {"mean": run.mean, "worst": run.worst, "flops": run.flops}
            entry["curve"] = [{"flops": flops, "scores": scores} for flops, scores in run.curve]
        return whole


def read_outcome(arm: str, seed: int, folder: Path, index: int, num_shared: int) -> RunOutcome:
    """Read a finished run.

    Args:
        index: Which stage is compared; those after it belong to its curve.
        num_shared: Stages, from the first, that are charged to no arm.
    """
    history = read_run(folder)
    results = history.summary.stages
    uncharged = sum(result.flops for result in results[:num_shared])
    curve = [(sum(result.flops for result in results[num_shared:index]), results[index].before)]
    for stage in history.stages[index:]:
        assert stage.result is not None  # the run is finished
        curve += [
            (record["flops"] - uncharged, scores)
            for record in stage.metrics
            if (scores := _scores(record, stage.result.after))
        ]
        end = sum(result.flops for result in results[num_shared : history.stages.index(stage) + 1])
        curve.append((end, stage.result.after))
    return RunOutcome(arm, seed, folder, results[-1].after, curve, _num_scored(history, index))


def _scores(record: Mapping[str, Any], skills: Mapping[str, float]) -> dict[str, float]:
    return {skill: record[key] for skill in skills if (key := f"score/{skill}") in record}


def _num_scored(history: RunHistory, index: int) -> int:
    return int(max((record.get("tokens/scored", 0) for record in history.stages[index].metrics), default=0))


def compare(
    recipe: str, arms: Mapping[str, Sequence[str]], seeds: Sequence[int], runs: Sequence[RunOutcome]
) -> AblationResult:
    """Compare finished runs, at least one; the first arm that has any is what the others are compared with."""
    span = max(run.curve[0][0] for run in runs), min(run.flops for run in runs)
    grouped = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    grouped = {arm: group for arm, group in grouped.items() if group}
    target = NEAR * max(fmean(run.mean for run in group) for group in grouped.values())
    standings = [_standing(arm, group, *span, target) for arm, group in grouped.items()]
    measures = MEASURES if span[0] < span[1] else MEASURES[:1]
    differences = [
        difference for measure in measures for difference in _differences(list(grouped.values()), measure, *span)
    ]
    return AblationResult(recipe, arms, seeds, list(runs[0].scores), runs, *span, target, standings, differences)


def _standing(arm: str, runs: Sequence[RunOutcome], start: float, flops: float, target: float) -> ArmSummary:
    reached = [statistics.reached(run.points(), target) for run in runs]
    middle = median(float("inf") if x is None else x for x in reached)

    def spread(measure: Measure) -> Spread:
        return Spread.of([run.measured(measure, start, flops) for run in runs])

    return ArmSummary(
        arm,
        len(runs),
        final=spread("final"),
        worst=Spread.of([run.worst for run in runs]),
        even=spread("even") if start < flops else None,
        area=spread("area") if start < flops else None,
        flops=Spread.of([run.flops for run in runs]),
        to_near=None if middle == float("inf") else middle,
        num_near=sum(x is not None for x in reached),
        num_scored=fmean(run.num_scored for run in runs),
    )


def _differences(
    arms: Sequence[Sequence[RunOutcome]], measure: Measure, start: float, flops: float
) -> list[PairedDifference]:
    """Compare arms with the first on the seeds that both have; those that have none in common are left out."""
    first = {run.seed: run.measured(measure, start, flops) for run in arms[0]}
    found = []
    for runs in arms[1:]:
        pairs = [run.measured(measure, start, flops) - first[run.seed] for run in runs if run.seed in first]
        if pairs:
            won, p = sum(value > 0 for value in pairs), statistics.sign_flips(pairs)
            interval = statistics.bootstrap(pairs)
            found.append(PairedDifference(runs[0].arm, measure, len(pairs), fmean(pairs), interval, won, p))
    corrected = statistics.holm([difference.p for difference in found])
    return [replace(difference, p=p) for difference, p in zip(found, corrected, strict=True)]
