"""The default controller in the stress scenarios of `recipes/scenarios`: what it must do, and how fast.

Four of them run here in a short form, with teachers and students that learn for less long. `RLD_SCENARIOS=1` runs all
eight as they ship, which takes a few minutes, and asks more of them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from rld.cli import main
from tests.support.runs import one_thread

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")
FULL = bool(os.environ.get("RLD_SCENARIOS"))
only_whole = pytest.mark.skipif(not FULL, reason="takes half a minute and more; RLD_SCENARIOS=1 runs it")
SKILLS = ("reverse", "rotate", "sort", "following")
EVERY = 2
"""Updates from tick to tick in all scenarios."""
OFF = 0.05


class Finished:
    """The last stage of a run: its log, and what it came to."""

    def __init__(self, folder: Path) -> None:
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())["stages"][-1]
        logged = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        self.log: list[dict[str, Any]] = [line for line in logged if line["stage"] == "distill"]
        self.before, self.after = self.summary["before"], self.summary["after"]

    def follow(self, key: str, start: int = 0, ticks: int = 0) -> list[float]:
        """What was logged under a key, from so many ticks after an update on."""
        values = [line[key] for line in self.log if line["step"] > start + EVERY * ticks and key in line]
        assert values, f"no {key} is in the log"
        return values

    def curve(self, skills: Iterable[str]) -> list[tuple[int, float]]:
        """Updates, and the mean held-out score over skills after them."""
        keys = [f"score/{skill}" for skill in skills]
        points = [(line["step"], fmean(line[key] for key in keys)) for line in self.log if keys[0] in line]
        return [*points, (self.log[-1]["step"], self.mean(skills))]

    def mean(self, skills: Iterable[str] = SKILLS) -> float:
        return fmean(self.after[skill] for skill in skills)

    def gain(self) -> float:
        return self.mean() - fmean(self.before.values())


def train(folder: Path, scenario: str, *overrides: str, **short: int) -> Finished:
    """Run a scenario with overrides; in the short form, with so many steps per stage and fewer held-out rows.

    Without gold answers: what is tested are the weights on the student's own completions.
    """
    given = [*overrides, "stages.distill.signals.gold=null"]
    if not FULL:
        given += [f"stages.{stage}.steps={steps}" for stage, steps in short.items()]
        given += [f"skills.{skill}.held_out=40" for skill in SKILLS]
    output = folder / f"run-{len(list(folder.iterdir()))}"
    assert main(["train", f"scenarios/{scenario}", "seed=200", *given, "--output", str(output)]) == 0
    return Finished(output)


# -- in the suite, in a short form ------------------------------------------------------------------------------------


def test_each_skill_is_learnt_from_the_teacher_that_knows_it(tmp_path):
    steps = {"knows_all": 140, "wrong_on_one": 40, "wrong_on_two": 40, "first_steps": 30, "distill": 40}
    run = train(tmp_path, "s1_wrong_teacher", **steps)
    for teacher, skill in (("one", "rotate"), ("two", "reverse"), ("two", "sort")):
        assert run.follow(f"teacher/{teacher}/weight/{skill}")[0] == 0.5
        assert max(run.follow(f"teacher/{teacher}/weight/{skill}", ticks=10)) < OFF
    tokens = run.summary["teacher_tokens"]
    assert tokens["saved"] > 0.2 * (tokens["scored"] + tokens["saved"])
    assert run.gain() > (0.5 if FULL else 0.1)


def test_a_teacher_that_regresses_is_dropped_where_it_is_wrong(tmp_path):
    swap = 60 if FULL else 16
    changes = f"stages.distill.experiment.perturbations=[{{at: {swap}, teacher: teacher, becomes: regressed}}]"
    steps = {"knows_all": 140, "regressed": 40, "first_steps": 30, "distill": 50}
    run = train(tmp_path, "s4_teacher_regresses", changes, **steps)
    for skill in ("reverse", "rotate"):
        assert min(run.follow(f"weight/response/{skill}")[: swap // 2]) > 0.3
        assert max(run.follow(f"weight/response/{skill}", swap, ticks=15)) < OFF
    for skill in ("sort", "following"):
        assert min(run.follow(f"teacher/teacher/weight/{skill}")) == 1
    if FULL:
        curve = run.curve(SKILLS)
        then = next(score for step, score in curve if step >= swap)
        assert min(score for step, score in curve if step > swap) > then - 0.05
        assert next(score for step, score in curve if step >= swap + 20 * EVERY) >= then


def test_reinforcement_goes_on_where_the_teacher_left(tmp_path):
    leaves = 60 if FULL else 16
    changes = f"stages.distill.experiment.perturbations=[{{at: {leaves}, teacher: teacher, becomes: null}}]"
    run = train(tmp_path, "s3_teacher_leaves", changes, knows_all=140, first_steps=30, distill=40)
    assert all(math.isfinite(value) for line in run.log for value in line.values() if isinstance(value, float))
    assert set(run.follow("tokens/scored", leaves)) == {run.follow("tokens/scored")[leaves - 1]}
    assert max(run.follow("loss/response", leaves, ticks=1)) == 0
    if FULL:
        curve = run.curve(SKILLS)
        then = next(score for step, score in curve if step >= leaves)
        assert min(score for step, score in curve if step > leaves) > then - 0.03
        assert curve[-1][1] > then


def test_a_teacher_whose_states_mean_nothing_is_dropped(tmp_path):
    run = train(tmp_path, "s7_features", knows_all=140, first_steps=30, distill=44)
    for skill in SKILLS:
        assert max(run.follow(f"teacher/untrained/weight/{skill}", ticks=20)) < OFF
    if FULL:
        alone = "stages.distill.controller={kind: fixed, decide_every: 2, feature: 0}"
        without = train(tmp_path, "s7_features", alone)
        areas = [fmean(score for _, score in each.curve(SKILLS)) for each in (run, without)]
        assert areas[0] >= areas[1] + 0.02


# -- whole, on demand -------------------------------------------------------------------------------------------------


@only_whole
def test_a_student_passes_a_teacher_with_systematic_errors(tmp_path):
    run = train(tmp_path, "s2_flawed_teacher")
    teacher = run.summary["teachers"]["flawed"]["scores"]
    for skill in ("reverse", "sort"):
        assert run.after[skill] > teacher[skill]
    assert run.mean(["reverse", "sort"]) > fmean(teacher[skill] for skill in ("reverse", "sort")) + 0.1
    assert run.mean(["rotate", "following"]) > 0.9


@only_whole
def test_a_reward_that_is_fooled_loses_its_say(tmp_path):
    run = train(tmp_path, "s5_fooled_reward")
    for skill in ("reverse", "sort"):
        assert min(run.follow(f"weight/policy/{skill}", 20)[: 15 * EVERY]) < 0.1, "within 15 ticks"
    # Where the student comes to earn most of what it is paid, the reward is believed again, `sort` soon.
    assert fmean(run.follow("weight/policy/reverse", 20, ticks=15)) < 0.1
    distilled = train(
        tmp_path, "s5_fooled_reward", "stages.distill.signals={response: {}}", "stages.distill.audit=null"
    )
    assert run.mean() >= distilled.mean() - 0.02


@only_whole
def test_what_is_not_practised_is_not_forgotten(tmp_path):
    run = train(tmp_path, "s6_forgotten_skill")
    unguarded = train(tmp_path, "s6_forgotten_skill", "stages.distill.retain=null")
    old, new = ("sort", "following"), ("reverse", "rotate")
    start = fmean(run.before[skill] for skill in old)
    assert unguarded.mean(old) < start - 0.5  # the threat is real
    assert run.mean(old) > start - 0.2
    assert run.mean(new) >= 0.9 * unguarded.mean(new)
    scores = [score for step, score in run.curve(old) if step > 20 * EVERY]
    assert fmean(score >= start - 0.05 for score in scores) >= 0.8, scores


@only_whole
def test_prompts_go_where_something_is_to_be_learnt(tmp_path):
    run = train(tmp_path, "s8_shifting_levels")
    assert run.mean(["reverse", "sort"]) > fmean(run.before[skill] for skill in ("reverse", "sort")) + 0.15
    # one that can't be learnt, one that is known
    shares = {skill: fmean(run.follow(f"share/{skill}", ticks=30)) for skill in ("label", "following")}
    assert shares["label"] < 0.15
    assert shares["following"] < 0.25
