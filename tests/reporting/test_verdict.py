"""What the verdict says of runs that end well and badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rld.reporting.history import PlannedStage, RecipeSummary, RunHistory, StageHistory
from rld.reporting.score_records import ModelScores
from rld.reporting.summary_records import StageResult, Summary
from rld.reporting.tables import closing_table
from rld.reporting.verdict import Estimate, Finding, losses_of_skills, verdict


def stage(
    before: Mapping[str, float],
    after: Mapping[str, float],
    expert: Mapping[str, float] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    name: str = "distill",
    kind: str = "distill",
    **plan: Any,
) -> StageHistory:
    student = ModelScores(parameters=1, scores=dict(after))
    teachers = {"expert": ModelScores(parameters=9, scores=dict(expert))} if expert else {}
    result = StageResult(
        name=name,
        kind=kind,
        seconds=1,
        flops=1,
        student=student,
        teachers=teachers,
        before=dict(before),
        after=dict(after),
    )
    logged = [{"step": i, **line} for i, line in enumerate(metrics)]
    return StageHistory(PlannedStage(name=name, kind=kind, steps=9, **plan), logged, [], result)


def findings(*stages: StageHistory, num_rows: int = 200) -> list[Finding]:
    skills = {skill: num_rows for one in stages if one.result for skill in one.result.after}
    summary = Summary(
        recipe="r",
        seed=0,
        status="done",
        seconds=1,
        flops=1,
        heldout_rows=skills,
        stages=[one.result for one in stages if one.result],
    )
    plan = RecipeSummary(name="r", skills=skills, stages=[one.plan for one in stages])
    return verdict(RunHistory(Path(), {}, plan, summary, list(stages), []))


def test_a_run_that_went_well_is_one_good_sentence() -> None:
    assert findings(stage({"sort": 0.1, "flip": 0.3}, {"sort": 0.9, "flip": 0.96}, {"sort": 0.95, "flip": 0.2})) == [
        Finding(
            "good",
            "The student answers 93% of the held-out rows correctly, 20% before stage `distill` (means over 2 skills)",
        )
    ]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (
            stage({"sort": 0.8}, {"sort": 0.49}),
            "The student ended 0.31 below its start on `sort`: lower the learning rate, train longer, begin with gold "
            "answers, or protect the skill with `retain`.",
        ),
        (
            stage({"sort": 0.8, "flip": 0.6, "copy": 0.9}, {"sort": 0.49, "flip": 0.4, "copy": 0.7}),
            "The student ended 0.31 below its start on `sort`, 0.20 on `flip` and 0.20 on `copy`: lower the learning "
            "rate, train longer, begin with gold answers, or protect the skill with `retain`.",
        ),
        (
            stage({"sort": 0.1}, {"sort": 0.1}, {"sort": 0.9}),
            "The student learned nothing on `sort` (0.10, its teacher `expert` 0.90): train longer, raise the "
            "learning rate, or begin with gold answers.",
        ),
        (
            stage({"sort": 0.1}, {"sort": 0.5}, {"sort": 0.9}),
            "The student improved, but is behind its teacher on `sort` (0.50, its teacher `expert` 0.90): train "
            "longer, or use a larger student.",
        ),
        (
            stage({"sort": 0.0}, {"sort": 0.01}, {"sort": 0.0}),
            "Neither the student nor a teacher solves `sort` (0.01): begin with gold answers (a stage `sft`) or easier "
            "levels, or use another teacher.",
        ),
        (
            stage({"sort": 0.1}, {"sort": 0.5}, metrics=[{"loss": 1.0}, {"loss": None}]),
            "The loss was not a number in 1 of 2 logged updates: lower the learning rate, or train in float32.",
        ),
        (
            stage({"sort": 0.1}, {"sort": 0.5}, metrics=[{"audit/sort": value} for value in (1.0, 1.0, 1.0, 0.5)]),
            "At the end the audit confirmed only 50% of the successes on `sort`: mend the reward, for the student has "
            "learned to please it with wrong answers.",
        ),
    ],
)
def test_each_trouble_has_its_sentence_and_what_to_try(one: StageHistory, expected: str) -> None:
    assert [str(finding) for finding in findings(one)[1:]] == [expected]


TROUBLES = {
    "unsolved": stage({"sort": 0.0}, {"sort": 0.01}, {"sort": 0.0}, student="start"),
    "unlearned": stage({"sort": 0.1}, {"sort": 0.1}, {"sort": 0.9}, student="start"),
    "forgotten": stage({"sort": 0.8}, {"sort": 0.49}, student="start"),
}


def gold(name: str, **plan: Any) -> StageHistory:
    return stage({"sort": 0.0}, {"sort": 0.0}, name=name, kind="sft", **plan)


@pytest.mark.parametrize(
    ("trouble", "advice"),
    [
        ("unsolved", "train longer on gold answers, begin with easier levels, or use another teacher"),
        ("unlearned", "train longer, or raise the learning rate"),
        ("forgotten", "lower the learning rate, train longer, or protect the skill with `retain`"),
    ],
)
@pytest.mark.parametrize(
    "stages",
    [
        [gold("start")],
        [gold("start", skills=["sort", "flip"])],
        [gold("warm"), stage({}, {"sort": 0.0}, name="start", kind="prune", model="warm")],
        [gold("one"), stage({}, {"sort": 0.0}, name="start", kind="merge", models=["one", "two"])],
    ],
    ids=["at once", "its skill", "before it is cut", "before it is merged"],
)
def test_a_run_that_begins_with_gold_answers_is_not_told_to_begin_so(trouble, advice, stages) -> None:
    assert findings(*stages, TROUBLES[trouble])[1].advice == advice


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(
    "first",
    [
        gold("teacher"),
        gold("start", skills=["flip"]),
        gold("start", teacher="large"),
        stage({}, {"sort": 0.0}, name="start"),
    ],
    ids=["of a teacher", "of another skill", "answers of a teacher", "no fine-tuning"],
)
def test_gold_answers_that_the_student_has_not_learnt_are_still_advised(trouble, first) -> None:
    assert "begin with gold answers" in findings(first, TROUBLES[trouble])[1].advice


def test_a_stage_of_gold_answers_itself_is_not_told_to_begin_with_them() -> None:
    (finding,) = findings(stage({"sort": 0.8}, {"sort": 0.4}, name="sft", kind="sft", student="tiny"))[1:]
    assert finding.advice == "lower the learning rate, train longer, or protect the skill with `retain`"


def test_a_difference_within_chance_is_no_trouble() -> None:
    assert [finding.tone for finding in findings(stage({"sort": 0.55}, {"sort": 0.5}), num_rows=50)] == ["neutral"]
    assert [finding.tone for finding in findings(stage({"sort": 0.55}, {"sort": 0.5}), num_rows=5000)] == ["bad", "bad"]


def test_an_earlier_stage_is_named_and_an_unfinished_run_has_no_verdict() -> None:
    first = stage({"sort": 0.8}, {"sort": 0.2}, name="warm")
    assert str(findings(first, stage({"sort": 0.2}, {"sort": 0.9}))[1]).startswith(
        "Stage `warm`: The student ended 0.60"
    )
    plan = first.plan
    assert findings(StageHistory(plan, [], [], None)) == []


def test_a_stage_that_ends_below_its_start_is_told_where_a_run_closes():
    before, after = {"a": Estimate(0.5, 0.05), "b": Estimate(0.5, 0.05)}, {"a": Estimate(0.2, 0.04)}
    fallen = losses_of_skills(before, {**after, "b": Estimate(0.49, 0.05)})
    assert fallen == {"a": pytest.approx(0.3)}
    result = stage({"a": 0.5, "b": 0.5}, {"a": 0.2, "b": 0.49}).result.model_copy(update={"below_start": fallen})
    summary = Summary(recipe="r", seed=0, status="done", seconds=1, flops=1, heldout_rows={}, stages=[result])
    assert "warning: distill ended below its start: a -0.30" in str(closing_table(summary).caption)
