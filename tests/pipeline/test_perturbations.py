"""Changes on purpose: each does what it says at its step, and a resumed run makes it again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rld.cli import main
from rld.errors import RecipeError
from rld.pipeline.perturbations import Perturbations, PerturbedReward
from rld.recipe.perturbations import RewardChange, TeacherChange
from rld.recipe.plugins import RewardSpec
from rld.recipe.reading import read_recipe
from rld.utils import interrupts
from tests.pipeline.test_train import RECIPE, TASKS, metrics

SECOND = "  - {name: other, kind: sft, student: tiny, steps: 2, batch: 8}\n  - name: student\n"
CHANGED = (
    RECIPE.replace("  - name: student\n", SECOND)
    .replace("steps: 40, batch: 8, checkpoint_every: 6", "steps: 2, batch: 8")
    .replace(
        "teachers: {teacher: {model: teacher, probe_prompts: 4}}",
        "teachers: {teacher: {model: teacher}, b: {model: other}}",
    )
    .replace(", feature: {}", "")
    .replace(
        "{kind: gap, decide_every: 2}", "{kind: fixed, decide_every: 2}\n    experiment: {perturbations: [CHANGES]}"
    )
    .replace("use: ./tasks.py:Mine", "use: fixed:Uniform")
)
CHANGES = """
      {at: 2, teacher: teacher, becomes: other}, {at: 4, teacher: b, becomes: null},
      {at: 3, reward: "answers:exact_match", noise: 0.5}, {at: 10, reward: "answers:exact_match", noise: 0},
      {at: 9, reward: ./tasks.py:share, becomes: "shape:brief", options: {target: 2}, weight: 2},
      {at: 5, joins: flip}, {at: 10, leaves: copy}, {at: 6, skill: copy, levels: [1]}"""


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(folder: Path, changes: str) -> Path:
    (folder / "tasks.py").write_text(TASKS)
    (folder / "changed.yaml").write_text(CHANGED.replace("CHANGES", changes))
    return folder / "changed.yaml"


@pytest.mark.usefixtures("one_thread")
def test_a_run_with_changes_goes_on_after_them_as_if_never_stopped(tmp_path, monkeypatch):
    recipe = written(tmp_path, CHANGES)
    assert main(["train", str(recipe), "--output", str(tmp_path / "whole")]) == 0
    log = tmp_path / "cut" / "metrics.jsonl"
    monkeypatch.setattr(
        interrupts.StopRequest, "is_made", lambda _: log.exists() and '"student", "step": 7' in log.read_text()
    )
    assert main(["train", str(recipe), "--output", str(tmp_path / "cut")]) != 0
    monkeypatch.undo()
    assert main(["train", str(recipe), "--output", str(tmp_path / "cut"), "--resume"]) == 0
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    events = [(tmp_path / name / "events.jsonl").read_text() for name in ("cut", "whole")]
    assert events[0] == events[1]
    changes = [(event["step"], event["about"]) for event in map(json.loads, events[0].splitlines())]
    assert [step for step, _ in changes] == [2, 3, 4, 5, 6, 9, 10, 10]
    assert (2, "teacher becomes other") in changes
    lines = {line["step"]: line for line in metrics(tmp_path / "whole") if line["stage"] == "student"}
    assert lines[4]["teacher/b/weight"] == 0.5
    assert lines[6]["teacher/b/weight"] == 0
    assert "progress/flip" not in lines[4]
    assert "progress/flip" in lines[8]
    assert "progress/copy" not in lines[14]  # the prompts of two updates had been drawn by then


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{at: 99, leaves: copy}", "perturbations.0.at is 99, but the stage ends after 14 steps"),
        ("{at: 1, leaves: copi}", "'copi' is no skill of this stage; did you mean 'copy'?"),
        ("{at: 1, teacher: tutor, becomes: null}", "'tutor' is no teacher of this stage; choose from teacher, b"),
        ("{at: 1, teacher: b}", "'stages.student.experiment.perturbations.0.becomes' is required"),
        ("{at: 1, teacher: b, becomes: studnet}", "there is no model 'studnet'"),
        ("{at: 1, reward: answers:exact_mach, noise: 0.1}", "is no reward; did you mean 'answers:exact_match'?"),
        ("{at: 1, reward: ./tasks.py:share, becomes: ./tasks.py:shar}", "did you mean 'share'?"),
        ("{at: 1, reward: ./tasks.py:share, noise: 2}", "perturbations.0.noise"),
        ("{at: 1, skill: copy, levels: [2]}", "is 2, but the last level of 'copy' is 1"),
        ("{at: 1, bar: [1]}", "should have one of the keys 'teacher', 'reward', 'joins', 'leaves' and 'skill'"),
    ],
)
def test_a_change_that_cannot_be_made_is_told_before_the_run(tmp_path, change, message):
    with pytest.raises(RecipeError) as caught:
        read_recipe(written(tmp_path, change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("teachers", "cache", "what"),
    [
        ("{b: {url: http://h:1}}", "", "on a server"),
        ("{b: {model: teacher}}", "cache: {folder: ./c}, ", "with a cache"),
    ],
)
def test_a_teacher_that_is_not_here_cannot_become_another(tmp_path, teachers, cache, what):
    head, stages = RECIPE.split("stages:\n")
    stage = (
        f"  - {{name: main, kind: distill, student: tiny, steps: 2, teachers: {teachers}, {cache}"
        "signals: {response: {}}, rollout: {prompts: 2, completions: 2, gold_completions: 2},\n"
        "     experiment: {perturbations: [{at: 1, teacher: b, becomes: teacher}]}}\n"
    )
    first = stages.split("  - name: student")[0]
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "r.yaml").write_text(f"{head}stages:\n{first}{stage}")
    with pytest.raises(RecipeError, match=f"a teacher {what} can't become another; null lets it leave"):
        read_recipe(tmp_path / "r.yaml")


def test_a_change_of_an_optional_teacher_that_was_left_out_is_skipped_with_an_event():
    changes = Perturbations([TeacherChange(at=0, teacher="far", becomes=None)], [], [], None, None, 0)
    trainer: Any = SimpleNamespace(teachers=[], stream=None, events=[])
    changes.attach(trainer, 0)
    changes.on_step_begin(None, SimpleNamespace(global_step=0), None)
    (event,) = trainer.events
    assert event.about == "far is not there, so its change is skipped"


@pytest.mark.parametrize(("reward", "forgets"), [("answers:exact_match", True), ("shape:brief", False)])
def test_what_the_verifier_said_of_teachers_answers_is_forgotten_when_it_changes(reward, forgets):
    specs = [RewardSpec(use="answers:exact_match"), RewardSpec(use="shape:brief")]
    change = RewardChange(at=0, reward=reward, becomes=None, noise=0.5)
    changes = Perturbations([change], specs, [len, len], None, None, 0)
    told: list[tuple[str, int]] = []
    memories = {name: SimpleNamespace(forget=lambda k, name=name: told.append((name, k))) for name in MEMORIES}
    trainer: Any = SimpleNamespace(teachers=[1, 2], stream=None, events=[], num_own_verifiers=0, **memories)
    changes.attach(trainer, 1)
    assert told == [(name, k) for k in (0, 1) for name in MEMORIES if forgets]


MEMORIES = ("gate", "answers")
"""The parts of a trainer that keep what the verifier said."""


def verdicts(reward: Any, step: int) -> list[float | None]:
    state = SimpleNamespace(global_step=step)
    made: list[float | None] = reward(prompts=["p"] * 400, completions=["c"] * 400, trainer_state=state)
    return made


def test_noise_turns_a_share_of_the_verdicts_round_by_step_and_seed_alone():
    def right(completions: list[str], **_: Any) -> list[float | None]:
        return [1.0, None] * (len(completions) // 2)

    reward = PerturbedReward(right, seed=3)
    assert verdicts(reward, 1) == [1.0, None] * 200
    reward.noise = 0.25
    count = Counter(verdicts(reward, 1))
    assert count[None] == 200
    assert 30 <= count[0.0] <= 70
    assert verdicts(reward, 1) == verdicts(reward, 1) != verdicts(reward, 2)
    other = PerturbedReward(right, seed=4)
    other.noise = 0.25
    assert verdicts(other, 1) != verdicts(reward, 1)
