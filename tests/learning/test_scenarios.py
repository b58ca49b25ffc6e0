"""The default controller in the stress scenarios of `recipes/scenarios`: what it must do, and how fast.

Four of them run in a short form, with small teachers and few updates. `RLD_SCENARIOS=1` runs all eight as they ship, which
takes a quarter of an hour; the limits are those of the runs' own logs, not of one seed's luck.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from rld.cli import main
from tests.test_pipeline import one_thread

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")
FULL = bool(os.environ.get("RLD_SCENARIOS"))
full_only = pytest.mark.skipif(not FULL, reason="takes minutes; RLD_SCENARIOS=1 runs it")
EVERY = 2
"""Updates from tick to tick in all scenarios."""
OFF = 0.05


class Finished:
    """A run's log of its last stage, and what it came to."""

    def __init__(self, folder: Path) -> None:
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())["stages"][-1]
        logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self.log: list[dict[str, Any]] = [line for line in logged if line["stage"] == "distill"]
        self.events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        self.before, self.after = self.summary["before"], self.summary["after"]

    def follow(self, key: str, start: int = 0, ticks: int = 0) -> list[float]:
        """What was logged under a key after so many ticks from an update on."""
        return [line[key] for line in self.log if line["step"] > start + EVERY * ticks and key in line]

    def scores(self, skills: Mapping[str, float] | list[str]) -> list[tuple[int, float]]:
        """Updates and mean held-out scores over skills, the last at the end."""
        keys = [f"score/{skill}" for skill in skills]
        found = [(line["step"], fmean(line[key] for key in keys)) for line in self.log if keys[0] in line]
        return [*found, (self.log[-1]["step"], fmean(self.after[skill] for skill in skills))]

    def score_at(self, step: int, skills: Mapping[str, float] | list[str]) -> float:
        """The latest mean score up to an update."""
        return [score for at, score in self.scores(skills) if at <= step][-1]


def train(folder: Path, scenario: str, short: dict[str, int] | None = None, *overrides: str) -> Finished:
    """Run a scenario, or its short form: so many steps in each stage, and fewer held-out rows."""
    given = list(overrides)
    if short is not None and not FULL:
        given += [f"stages.{stage}.steps={steps}" for stage, steps in short.items()]
        given += [f"skills.{skill}.held_out=40" for skill in ("reverse", "sort", "following")]
    output = folder / f"{scenario}{len(list(folder.iterdir()))}"
    assert main(["train", f"scenarios/{scenario}", "seed=200", *given, "--output", str(output)]) == 0
    return Finished(output)


def test_each_skill_is_learnt_from_the_teacher_that_knows_it(tmp_path):
    short = {"knows_all": 140, "wrong_on_one": 40, "wrong_on_two": 40, "first_steps": 30, "distill": 40}
    run = train(tmp_path, "s1_wrong_teacher", short)
    for teacher, skill in (("one", "rotate"), ("two", "reverse"), ("two", "sort")):
        assert max(run.follow(f"teacher/{teacher}/weight/{skill}", ticks=10)) < OFF
        assert run.log[0][f"teacher/{teacher}/weight/{skill}"] == 0.5
    tokens = run.summary["teacher_tokens"]
    assert tokens["saved"] > 0.2 * (tokens["scored"] + tokens["saved"])
    assert fmean(run.after.values()) > (0.75 if FULL else fmean(run.before.values()) + 0.1)


def test_a_teacher_that_regresses_is_dropped_where_it_is_wrong(tmp_path):
    swap = 60 if FULL else 20
    changes = f"stages.distill.changes=[{{at: {swap}, teacher: teacher, becomes: regressed}}]"
    run = train(tmp_path, "s4_teacher_regresses", SHORT_S4, changes)
    for skill in ("reverse", "rotate"):
        before, after = run.follow(f"teacher/teacher/weight/{skill}"), swap
        assert before[swap // 2] > 0.9
        assert max(run.follow(f"weight/response/{skill}", after, ticks=15)) < OFF
    for skill in ("sort", "following"):
        assert min(run.follow(f"teacher/teacher/weight/{skill}", swap)) > 0.9
    if FULL:
        then = run.score_at(swap, run.after)
        assert min(score for step, score in run.scores(run.after) if step > swap) > then - 0.05
        assert run.score_at(swap + 20 * EVERY, run.after) >= then
