"""A controller that gives a student the weights that another run had."""

from __future__ import annotations

import json

import pytest

from rld.cli import main
from rld.controllers.observation import Observation
from rld.controllers.replayed import ReplayedController
from rld.errors import ControllerError
from tests.pipeline.test_train import RECIPE, TASKS, metrics
from tests.support.runs import one_thread, recipe, whole

__all__ = ["RECIPE", "TASKS", "one_thread", "recipe", "whole"]


def test_a_run_that_is_yoked_to_itself_is_the_same_run(recipe, whole, tmp_path):
    replayed = f"stages.student.controller={{kind: replayed, decide_every: 2, run_folder: {whole}, stage: student}}"
    assert main(["train", str(recipe), replayed, "--output", str(tmp_path / "run")]) == 0
    for then, now in zip(metrics(whole), metrics(tmp_path / "run"), strict=True):
        # those who decide say in which phase a skill is, and have some prompts answered twice
        paid = ("phase/", "sure/", "flops", "tokens/scored", "tokens/saved")
        decided = [key for key in then if not key.startswith(paid)]
        assert {key: now[key] for key in decided} == {key: then[key] for key in decided}


def test_it_holds_what_was_logged_last_and_shares_the_prompts(tmp_path):
    lines = [
        {"stage": "s", "step": step, "weight/policy/add": weight, "teacher/a/weight/add": 1.0, "share/add": 1.0}
        for step, weight in ((1, 0.1), (5, 0.5))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    replayed = ReplayedController(run_folder=str(tmp_path), stage="s")
    state = replayed.start(["add"], ["a"], ["policy"])
    followed = [replayed.weights(state)]
    for done in (3, 4, 90):
        state, weights, events = replayed.step(state, Observation(done, {}))
        followed.append(weights)
        assert not events
    assert [weights.signals["add"]["policy"] for weights in followed] == [0.1, 0.1, 0.5, 0.5]
    assert followed[0].teachers == {"add": {"a": 1.0}}
    assert followed[0].allocation == {"add": 1.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("{kind: replayed, run_folder: nowhere, stage: student}", "there is no run in nowhere"),
        ("{kind: replayed, run_folder: WHOLE, stage: studnet}", "has no stage 'studnet'; it has teacher, student"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_anything_is_trained(recipe, whole, tmp_path, capsys, options, said):
    given = f"stages.student.controller={options.replace('WHOLE', str(whole))}"
    assert main(["train", str(recipe), given, "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_without_one_of_the_skills_is_refused(whole):
    replayed = ReplayedController(run_folder=str(whole), stage="student")
    with pytest.raises(ControllerError, match="'weight/policy/sort' is not in the log"):
        replayed.start(["copy", "sort"], ["teacher"], ["policy"])
