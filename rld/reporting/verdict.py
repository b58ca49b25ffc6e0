"""Says in plain sentences how a run ended, and what to try where it did not go well. Plain values in, text out.

A difference of scores counts only where it is larger than `NUM_ERRORS` standard errors and than `SMALLEST_CHANGE`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from rld.reporting.history import RecipeSummary, RunHistory, StageHistory
from rld.reporting.score_records import are_shares_of_rows
from rld.reporting.summary_records import StageResult

NUM_ERRORS = 2.0
"""Standard errors of a difference of two scores that are taken for chance."""

SMALLEST_CHANGE = 0.02
"""Differences of scores below are not worth a sentence."""

DEFAULT_ROWS = 100
"""Held-out rows that are assumed where their number is not recorded."""

TRUSTED = 0.9
"""Share of audited successes that should be confirmed."""

BEHIND = 0.1
"""How far behind its best teacher a student may end without a remark."""


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict.

    Attributes:
        tone: Whether it is good news, bad news, or neither.
        text: What was measured.
        advice: What to try; empty where there is nothing to mend.
    """

    tone: Literal["good", "bad", "neutral"]
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}." if self.advice else f"{self.text}."


class Estimate(NamedTuple):
    """A score and its standard error over rows."""

    value: float
    error: float

    def is_larger(self, other: Estimate) -> bool:
        """Tell whether it is larger than another by more than chance."""
        return self.value - other.value > max(NUM_ERRORS * math.hypot(self.error, other.error), SMALLEST_CHANGE)


def verdict(history: RunHistory) -> list[Finding]:
    """Return the findings about a run: first on the last finished stage, then on what went wrong in any stage.

    Empty where no stage is finished.
    """
    finished = [stage for stage in history.stages if stage.result is not None]
    if not finished:
        return []
    num_rows, plan = history.summary.heldout_rows, history.plan
    result = finished[-1].result
    assert result is not None
    findings = [_headline(result, num_rows)]
    findings += [*_unsolved(result, num_rows, plan), *_behind_teachers(result, num_rows, plan)]
    for stage in finished:
        assert stage.result is not None
        prefix = "" if stage is finished[-1] else f"Stage `{stage.plan.name}`: "
        findings += _forgotten(stage.result, num_rows, plan, prefix=prefix)
        findings += _not_numbers(stage, prefix)
        findings += _distrusted(stage, prefix)
        findings += _equal_rewards(stage, prefix)
    return findings


def _headline(result: StageResult, num_rows: dict[str, int]) -> Finding:
    after = _mean(_estimates(result, "after", result.after, num_rows))
    are_shares = are_shares_of_rows(map(result.main_score, result.after))
    if not result.before:
        verb = f"answers {after.value:.0%} of" if are_shares else f"scores {after.value:.2f} on"
        text = f"The model of stage `{result.name}` {verb} the held-out rows" + (" correctly" if are_shares else "")
        return Finding("neutral", text)
    before = _mean(_estimates(result, "before", result.before, num_rows))
    if are_shares:
        scores = f"answers {after.value:.0%} of the held-out rows correctly, {before.value:.0%}"
    else:
        scores = f"scores {after.value:.2f} on the held-out rows, {before.value:.2f}"
    text = f"The student {scores} before stage `{result.name}`"
    if len(result.after) > 1:
        text += f" (means over {len(result.after)} skills)"
    if after.is_larger(before):
        return Finding("good", text)
    return Finding("bad" if before.is_larger(after) else "neutral", text)


def losses_of_skills(before: Mapping[str, Estimate], after: Mapping[str, Estimate]) -> dict[str, float]:
    """Return by how much a student's score fell on each skill where it fell by more than chance.

    Args:
        before: Its scores before a stage.
        after: Its scores after it.
    """
    fallen = [skill for skill, score in after.items() if skill in before and before[skill].is_larger(score)]
    return {skill: before[skill].value - after[skill].value for skill in fallen}


def _forgotten(result: StageResult, num_rows: dict[str, int], plan: RecipeSummary, *, prefix: str) -> Iterator[Finding]:
    """Skills on which the student ended below its start."""
    losses: dict[str, str] = {}
    before = _estimates(result, "before", result.before, num_rows)
    after = _estimates(result, "after", result.after, num_rows)
    for skill, loss in losses_of_skills(before, after).items():
        losses[skill] = f"{loss:.2f} {'' if losses else 'below its start '}on `{skill}`"
    if losses:
        gold = "" if plan.learns_gold_first(result.name, losses) else "begin with gold answers, "
        yield Finding(
            "bad",
            f"{prefix}The student ended {_listed([*losses.values()])}",
            f"lower the learning rate, train longer, {gold}or protect the skill with `retain`",
        )


def _unsolved(result: StageResult, num_rows: dict[str, int], plan: RecipeSummary) -> Iterator[Finding]:
    """Skills that neither the student nor a teacher solves."""
    skills = {}
    for skill, after in _estimates(result, "after", result.after, num_rows).items():
        if result.main_score(skill) == "byte_probability":
            continue  # documents have no answers that could be correct
        best = max([after, *_teachers(result, skill, num_rows).values()])
        if not best.is_larger(Estimate(0.0, 0.0)):
            skills[skill] = f"`{skill}` ({best.value:.2f})"
    if skills:
        if plan.learns_gold_first(result.name, skills):
            start = "train longer on gold answers, begin with easier levels"
        else:
            start = "begin with gold answers (a stage `sft`) or easier levels"
        yield Finding(
            "bad",
            f"Neither the student nor a teacher solves {_listed([*skills.values()])}",
            f"{start}, or use another teacher",
        )


def _behind_teachers(result: StageResult, num_rows: dict[str, int], plan: RecipeSummary) -> Iterator[Finding]:
    """Skills on which the student ended far below its best teacher: it did not learn, or not enough."""
    unlearned, unfinished = {}, []
    start = _estimates(result, "before", result.before, num_rows)
    for skill, after in _estimates(result, "after", result.after, num_rows).items():
        teachers, before = _teachers(result, skill, num_rows), start.get(skill, Estimate(0.0, 0.0))
        name, best = max(teachers.items(), key=lambda item: item[1], default=("", Estimate(0.0, 0.0)))
        if best.value - after.value < BEHIND or not best.is_larger(after):
            continue
        text = f"`{skill}` ({after.value:.2f}, its teacher `{name}` {best.value:.2f})"
        if after.is_larger(before):
            unfinished.append(text)
        elif not before.is_larger(after):
            unlearned[skill] = text
    if unlearned:
        has_gold = plan.learns_gold_first(result.name, unlearned)
        others = "or raise the learning rate" if has_gold else "raise the learning rate, or begin with gold answers"
        yield Finding(
            "bad",
            f"The student learned nothing on {_listed([*unlearned.values()])}",
            f"train longer, {others}",
        )
    if unfinished:
        yield Finding(
            "neutral",
            f"The student improved, but is behind its teacher on {_listed(unfinished)}",
            "train longer, or use a larger student",
        )


def _not_numbers(stage: StageHistory, prefix: str) -> Iterator[Finding]:
    points, num_lost = stage.series("loss")
    if num_lost:
        yield Finding(
            "bad",
            f"{prefix}The loss was not a number in {num_lost} of {len(points) + num_lost} logged updates",
            "lower the learning rate, or train in float32",
        )


def _distrusted(stage: StageHistory, prefix: str) -> Iterator[Finding]:
    """Skills whose reward paid for answers that the audit rejected, in the last quarter of the stage."""
    for key in stage.metric_names():
        if not key.startswith("audit/"):
            continue
        points, _ = stage.series(key)
        recent = [value for _, value in points[-max(len(points) // 4, 1) :]]
        if recent and fmean(recent) < TRUSTED:
            yield Finding(
                "bad",
                f"{prefix}At the end the audit confirmed only {fmean(recent):.0%} of the successes on "
                f"`{key.removeprefix('audit/')}`",
                "mend the reward, for the student has learned to please it with wrong answers",
            )


def _equal_rewards(stage: StageHistory, prefix: str) -> Iterator[Finding]:
    """Rewards that told no completions of a prompt apart."""
    names = list(dict.fromkeys(f"`{event.about}`" for event in stage.events if event.kind == "equal rewards"))
    if names:
        yield Finding(
            "bad",
            f"{prefix}The completions of a prompt always got the same reward from {_listed(names)}",
            "there was nothing to reinforce; choose levels that succeed sometimes, more completions, or another reward",
        )


def _listed(texts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _teachers(result: StageResult, skill: str, num_rows: Mapping[str, int]) -> dict[str, Estimate]:
    """Return each teacher's score on a skill."""
    estimates_by_teacher = {
        name: _estimates(result, f"teacher/{name}", model.scores, num_rows) for name, model in result.teachers.items()
    }
    return {name: estimates[skill] for name, estimates in estimates_by_teacher.items() if skill in estimates}


def _estimates(
    result: StageResult, scoring: str, scores: Mapping[str, float], num_rows: Mapping[str, int]
) -> dict[str, Estimate]:
    """Return the main scores of a scoring with their errors: where none is recorded, that of a share of rows."""
    estimates = {}
    for skill, score in scores.items():
        error = result.error(scoring, skill)
        share_error = math.sqrt(score * (1 - score) / (num_rows.get(skill) or DEFAULT_ROWS))
        estimates[skill] = Estimate(score, share_error if error is None else error)
    return estimates


def _mean(estimates: Mapping[str, Estimate]) -> Estimate:
    """Return the plain mean over skills."""
    error = math.sqrt(sum(estimate.error**2 for estimate in estimates.values())) / len(estimates)
    return Estimate(fmean(estimate.value for estimate in estimates.values()), error)
