"""A curriculum that wants a teacher's losses is told them once, before the first step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rld.cli import main
from rld.pipeline.stage_training import StageTraining
from rld.utils import files
from tests.support.runs import Killed, one_thread, recipe, written

__all__ = ["one_thread", "recipe"]

RECIPE = """
name: ordered
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}, {length: 1}], held_out: 4}
  swap: {generator: ./tasks.py:swap, held_out: 4}
models:
  tiny:
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
trainer: {learning_rate: 1e-2}
stages:
  - {name: copier, kind: sft, student: tiny, skills: [copy], steps: 30, batch: 16}
  - name: student
    kind: distill
    student: tiny
    teachers:
      copier: {model: copier, probe_prompts: 2, skills: [copy]}
      other: {model: tiny, probe_prompts: 2, skills: [copy]}
    signals: {policy: {}, response: {}}
    curriculum: {use: competence:TeacherLoss, options: {attempts: 64, start: 0.5}}
    rollout: {prompts: 4, completions: 2}
    steps: 4
    checkpoint_every: 2
"""

TASKS = """
def copy(rng, *, length):
    word = "".join(rng.choices("abcd", k=1)) * length if length == 1 else "".join(rng.choices("abcd", k=length))
    return f"a:{word}=", "a" if length == 1 else word

def swap(rng):
    return "b:" + "".join(rng.choices("abcd", k=3)) + "=", "b"
"""


def events(run: Path) -> list[dict]:
    return [line for line in files.read_jsonl(run / "events.jsonl").records if line["kind"] == "difficulty"]


def levels(run: Path) -> list[float]:
    lines = files.read_jsonl(run / "metrics.jsonl").records
    return [line["level/copy"] for line in lines if "level/copy" in line]


def test_levels_are_ordered_by_the_loss_of_the_best_teacher_and_stay_so_after_a_stop(recipe, tmp_path, monkeypatch):
    assert main(["train", str(recipe), "--output", str(tmp_path / "whole")]) == 0
    copy, swap = events(tmp_path / "whole")
    assert copy["about"] == "levels from easy to hard: 1, 0", "the second level has one answer, which is learnt first"
    assert copy["measured"].startswith("the loss of teacher copier on 32 gold answers each is ")
    assert "no teacher teaches the skill" in swap["measured"]
    finish = StageTraining.finish

    def killed(self, *args, **options):
        if self.stage.name == "student":
            raise Killed
        finish(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTraining, "finish", killed)
        with pytest.raises(Killed):
            main(["train", str(recipe), "--output", str(tmp_path / "killed"), "stages.student.steps=4"])
    checkpoints = sorted((tmp_path / "killed" / "checkpoints" / "student").glob("checkpoint-*"))
    state = files.read_json(checkpoints[-1] / "rld_state.json")["stream"]["curriculum"]
    assert state["order"] == {"copy": [1, 0], "swap": [0]}
    assert main(["train", str(recipe), "--output", str(tmp_path / "killed"), "--resume"]) == 0
    assert len(events(tmp_path / "killed")) == 2, "measured once"
    assert levels(tmp_path / "killed") == levels(tmp_path / "whole")


def test_a_skill_without_gold_answers_is_refused_before_anything_is_trained(tmp_path, capsys):
    tasks = (
        TASKS.replace('"=", "b"', '"=", ""') + "\ndef paid(completions, **_):\n    return [0.5] * len(completions)\n"
    )
    rewards = "rewards: [{use: ./tasks.py:paid}]\ntrainer:"
    recipe = RECIPE.replace("trainer:", rewards).replace("swap, held_out: 4", "swap, held_out: 0")
    assert main(["check", str(written(tmp_path, recipe, tasks))]) == 2
    assert "skill 'swap' has questions without a gold answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (
            lambda recipe: recipe[: recipe.index("    teachers:")] + recipe[recipe.index("    curriculum:") :],
            "teachers",
        ),
        (lambda recipe: recipe.replace(", {length: 1}]", "]"), "two"),
    ],
)
def test_what_cannot_be_ordered_is_refused(tmp_path, capsys, cut, message):
    path = written(tmp_path, cut(RECIPE), TASKS)
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 2
    assert re.search(
        f"competence:TeacherLoss: it orders .*stage 'student' has (no )?{message}", capsys.readouterr().err
    )
