"""Two runs side by side: their scores and how far these differ, what they cost, and which options differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rld.errors import UsageError
from rld.recipe.input_changes import ABSENT, differences, value_text
from rld.recipe.stage_inputs import by_stage_name
from rld.recipe.stages import AnyStage
from rld.recipe.stages.base import Stage
from rld.reporting.history import RunHistory, StageHistory, read_run
from rld.reporting.run_state import RunState, run_state
from rld.reporting.score_records import REACH, ScoreRecord
from rld.reporting.summary_records import StageResult
from rld.reporting.verdict import SMALLEST_CHANGE
from rld.utils import files
from rld.utils.files import Record
from rld.utils.options import kinds_of
from rld.utils.run_folder import ABLATION_RESULT, RunFolder, no_run


@dataclass(frozen=True)
class Side:
    """One of two runs.

    Attributes:
        letter: A or B.
        result: The finished stage whose model is compared; None: there is none yet.
    """

    letter: str
    history: RunHistory
    state: RunState
    result: StageResult | None

    @property
    def folder(self) -> Path:
        return self.history.folder


class ScorePair(NamedTuple):
    """The main score of a skill in both runs.

    Attributes:
        name: The score's name, in A where B has another one.
        rows: Held-out rows in each; None: its evaluator has rows of its own, of which the run has no number.
        scores: In each; None: it was not scored.
        difference: B's score minus A's, with its 95% interval; None where they cannot be compared.
        basis: Whether the rows are pairs or the two scores are taken for independent, or why there is no difference.
    """

    skill: str
    name: str
    rows: tuple[int | None, int | None]
    scores: tuple[ScoreRecord | None, ScoreRecord | None]
    difference: ScoreRecord | None
    basis: str

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the interval leaves out 0, and the difference is worth a sentence."""
        difference = self.difference
        if difference is None or abs(difference.value) <= SMALLEST_CHANGE:
            return False
        return difference.low > 0 or difference.high < 0

    def within_range(self) -> ScorePair:
        """Return it with intervals that do not pass what is possible: main scores are from 0 to 1."""
        a, b = (None if score is None else score.within(0.0, 1.0) for score in self.scores)
        difference = None if self.difference is None else self.difference.within(-1.0, 1.0)
        return self._replace(scores=(a, b), difference=difference)


@dataclass(frozen=True)
class RunComparison:
    """Two runs, and what is the same and what differs.

    Attributes:
        scores: Of each skill that one of the runs has scored.
        options: The keys of the options that differ, with both values as text.
        stages: The stages with a log that both have under one name.
        notes: What else the reader has to know, as sentences.
    """

    sides: tuple[Side, Side]
    scores: Sequence[ScorePair]
    options: Sequence[tuple[str, str, str]]
    stages: Sequence[tuple[StageHistory, StageHistory]]
    notes: Sequence[str]


def compare_runs(first: Path, second: Path) -> RunComparison:
    """Return two runs side by side, finished or not.

    Raises:
        UsageError: a folder holds no run, both are the same one, or no skill of one is a skill of the other.
        CheckpointError: a file of a run is damaged.
    """
    if first.resolve() == second.resolve():
        raise UsageError(f"{first} and {second} are the same folder; give those of two runs")
    sides = _with_results(_side("A", first), _side("B", second))
    skills = [list(side.history.plan.skills) for side in sides]
    if not set(skills[0]) & set(skills[1]):
        lists = " and ".join(f"{side.folder} has {', '.join(names)}" for side, names in zip(sides, skills, strict=True))
        raise UsageError(f"the runs have no skill in common, so nothing can be compared: {lists}")
    pairs = list(_pairs(sides))
    pairs += _mean([pair for pair in pairs if pair.difference is not None])
    pairs = [pair.within_range() for pair in pairs]  # after the mean, which goes by the errors
    old, new = (by_stage_name(side.history.recipe) for side in sides)
    options = [(".".join(map(str, keys)), _cell(was), _cell(now)) for keys, was, now in differences(old, new)]
    by_name = {stage.plan.name: stage for stage in sides[1].history.stages if stage.metrics}
    stages = [
        (stage, by_name[stage.plan.name])
        for stage in sides[0].history.stages
        if stage.metrics and stage.plan.name in by_name
    ]
    return RunComparison(sides, pairs, options, stages, list(_notes(sides, pairs)))


def _cell(value: Any) -> str:
    return "-" if value is ABSENT else value_text(value)


def _side(letter: str, folder: Path) -> Side:
    if not RunFolder(folder).recipe.is_file():
        if (folder / ABLATION_RESULT).is_file():
            raise UsageError(f"{folder} is an ablation, which compares its runs itself: rld report {folder}")
        raise no_run(folder)
    history = read_run(folder)
    return Side(letter, history, run_state(history), None)


def _with_results(first: Side, second: Side) -> tuple[Side, Side]:
    """Return the sides with the last finished stage of each; while one is not done, the last that both have.

    Stages that only score or export a model are left out, unless a recipe has no others.
    """
    results = [_comparable(side.history) for side in (first, second)]
    names = [{result.name for result in stages} for stages in results]
    if not first.state.state == second.state.state == "done" and names[0] & names[1]:
        results = [[result for result in stages if result.name in names[0] & names[1]] for stages in results]
    a, b = (stages[-1] if stages else None for stages in results)
    return replace(first, result=a), replace(second, result=b)


def _comparable(history: RunHistory) -> list[StageResult]:
    """Return the finished stages of a run that make a model, in order; all finished ones where none is to make one."""
    kinds = kinds_of(AnyStage).items()
    without_model = {kind for kind, stage in kinds if issubclass(stage, Stage) and not stage.makes_model}
    makers = {stage.name for stage in history.plan.stages if stage.kind not in without_model}
    return [result for result in history.summary.stages if not makers or result.name in makers]


def _notes(sides: tuple[Side, Side], pairs: Sequence[ScorePair]) -> Iterator[str]:
    for side in sides:
        if side.state.state != "done":
            yield f"{side.letter} is not finished, and what it has so far is compared. {side.state}"
    results = [side.result for side in sides]
    for side in sides:
        if side.result is None:
            yield f"{side.letter} has finished no stage that could be compared, so that there are no scores to compare."
    if results[0] and results[1] and results[0].name != results[1].name:
        yield f"Compared are the models of different stages: `{results[0].name}` of A and `{results[1].name}` of B."
    for side, other in (sides, sides[::-1]):
        alone = [f"`{skill}`" for skill in side.history.plan.skills if skill not in other.history.plan.skills]
        if alone:
            yield f"Only {side.letter} has {'the skills' if len(alone) > 1 else 'the skill'} {', '.join(alone)}."
    if any(pair.difference is not None for pair in pairs):
        yield (
            "The intervals are over held-out rows alone, and not corrected for the number of skills. Another seed may "
            "change a score by as much; `rld ablate` compares over seeds."
        )


def _pairs(sides: tuple[Side, Side]) -> Iterator[ScorePair]:
    scorings = [{} if side.result is None else side.result.scorings.get("after", {}) for side in sides]
    predictions = [_predictions(side) for side in sides]
    for skill in dict.fromkeys([*scorings[0], *scorings[1]]):
        names = [next(iter(scoring.get(skill, {})), "") for scoring in scorings]
        a, b = (scoring[skill][name] if name else None for scoring, name in zip(scorings, names, strict=True))
        num_rows = [side.history.summary.heldout_rows.get(skill) or None for side in sides]
        difference, basis = None, "not: only one has it"
        if a is not None and b is not None:
            rows = [[row for row in side if row["skill"] == skill] for side in predictions]
            difference, basis = _difference(names, (a, b), rows)
        yield ScorePair(skill, names[0] or names[1], (num_rows[0], num_rows[1]), (a, b), difference, basis)


def _mean(pairs: Sequence[ScorePair]) -> list[ScorePair]:
    """Return the mean over skills that can be compared, as a pair; none where there are not several."""
    if len(pairs) < 2:
        return []
    columns = ([pair.scores[0] for pair in pairs], [pair.scores[1] for pair in pairs], [p.difference for p in pairs])
    a, b, difference = (_mean_score([score for score in column if score is not None]) for column in columns)
    rows = [sum(pair.rows[i] or 0 for pair in pairs) or None for i in range(2)]
    return [ScorePair("mean", "of these", (rows[0], rows[1]), (a, b), difference, "")]


def _mean_score(scores: Sequence[ScoreRecord]) -> ScoreRecord:
    value = fmean(score.value for score in scores)
    reach = REACH * sum(score.error**2 for score in scores) ** 0.5 / len(scores)
    return ScoreRecord(value=value, low=value - reach, high=value + reach)


def _difference(
    names: Sequence[str], scores: tuple[ScoreRecord, ScoreRecord], rows: Sequence[Sequence[Record]]
) -> tuple[ScoreRecord | None, str]:
    """Return by how much the second score of a skill is larger, and on what its interval rests."""
    if names[0] != names[1]:
        return None, f"not: {names[0]} and {names[1]}"
    questions = [[(row["prompt"], row.get("gold")) for row in side] for side in rows]
    if not questions[0] or questions[0] != questions[1]:
        reason = "other rows" if questions[0] and questions[1] else "no rows recorded"
        return scores[1].change_from(scores[0]), f"as independent: {reason}"
    paired = _paired(names[0], scores, rows)
    return (scores[1].change_from(scores[0]), "as independent") if paired is None else (paired, "row by row")


def _paired(name: str, scores: tuple[ScoreRecord, ScoreRecord], rows: Sequence[Sequence[Record]]) -> ScoreRecord | None:
    """Return the mean difference over the same rows; None where the score is not the mean of what is recorded."""
    if name != "solved" or len(rows[0]) < 2:
        return None
    a, b = ([float((row.get("reward") or 0.0) >= 1) for row in side] for side in rows)
    if any(abs(fmean(values) - score.value) > 1e-6 for values, score in zip((a, b), scores, strict=True)):
        return None
    num_rows, num_better = len(a), sum(after > before for before, after in zip(a, b, strict=True))
    num_worse = sum(after < before for before, after in zip(a, b, strict=True))
    low, high = _paired_interval(num_better, num_worse, num_rows)
    return ScoreRecord(value=(num_better - num_worse) / num_rows, low=low, high=high)


def _paired_interval(num_better: int, num_worse: int, num_rows: int) -> tuple[float, float]:
    """Return the ends of the 95% interval of a difference of two shares of the same rows.

    The adjusted Wald interval of Bonett and Price (2012), "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data", J. Educ. Behav. Stat. 37(4): one row more counts as better and one as
    worse, so that few rows that all change alike are not taken for certain. Of very few rows it is too narrow: it
    reaches to 0 where McNemar's mid-p test finds no difference at a level of 5%.
    """
    better, worse = ((count + 1) / (num_rows + 2) for count in (num_better, num_worse))
    middle = better - worse
    reach = REACH * ((better + worse - middle**2) / (num_rows + 2)) ** 0.5
    if _mid_p(num_better, num_worse) > 0.05:
        return min(middle - reach, 0.0), max(middle + reach, 0.0)
    return middle - reach, middle + reach


def _mid_p(num_better: int, num_worse: int) -> float:
    """Return the two-sided mid-p value of McNemar's test, of rows that changed (Fagerland, Lydersen and Laake 2013)."""
    num_changed, fewer = num_better + num_worse, min(num_better, num_worse)
    if num_better == num_worse:
        return 1.0
    ways = list(accumulate(range(fewer), lambda count, i: count * (num_changed - i) // (i + 1), initial=1))
    return float((2 * sum(ways) - ways[-1]) / 2**num_changed)


def _predictions(side: Side) -> list[Record]:
    """Return what the model of a run said of each held-out row; empty where that is not recorded, or damaged."""
    if side.result is None:
        return []
    lines = files.read_jsonl(RunFolder(side.folder).predictions(side.result.name, "after"))
    return [] if lines.damaged or not all(map(_is_prediction, lines.records)) else lines.records


def _is_prediction(row: Record) -> bool:
    """Tell whether a record has a skill, a prompt and, where its row asks for an answer, a reward that is a number."""
    reward = row.get("reward")
    return {"skill", "prompt"} <= row.keys() and (reward is None or files.is_number(reward))
