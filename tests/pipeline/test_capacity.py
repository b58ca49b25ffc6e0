"""A student of 300 parameters is too small for its teacher, and is told so; one of the teacher's size is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rld.cli import main
from rld.utils import files
from tests.support.runs import one_thread, written

__all__ = ["one_thread"]

RECIPE = """
name: capacity
tokenizer: {characters: "0123r="}
max_new_tokens: 4
skills:
  reverse: {generator: ./tasks.py:reverse, held_out: 16}
models:
  large:
    new: llama
    config: {hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 4}
  tiny:
    new: llama
    config: {hidden_size: 4, intermediate_size: 4, num_hidden_layers: 1, num_attention_heads: 1}
trainer: {learning_rate: 4e-3, lr_scheduler_type: constant}
stages:
  - {name: teacher, kind: sft, student: large, steps: 100, batch: 32}
"""

LEARN = """
  - name: learn
    kind: distill
    student: tiny
    teachers: {teacher: {model: teacher, probe_prompts: 8}}
    signals: {policy: {}, response: {}}
    capacity: {window: 6}
    controller: {kind: fixed, policy: 0.2, response: 0.8, decide_every: 2}
    rollout: {prompts: 8, completions: 2}
    steps: 64
"""

TASKS = """
def reverse(rng):
    word = "".join(rng.choices("0123", k=3))
    return f"r{word}=", word[::-1]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe whose teacher has been trained."""
    folder = tmp_path_factory.mktemp("recipe")
    assert main(["train", str(written(folder, RECIPE, TASKS)), "--output", str(folder / "run")]) == 0
    trained = LEARN.replace("{model: teacher,", f"{{model: {folder / 'run' / 'student'},")
    return written(folder, RECIPE[: RECIPE.index("  - {name: teacher")] + trained.lstrip("\n"), TASKS)


def gaps(recipe: Path, run: Path, *overrides: str) -> list[dict]:
    assert main(["train", str(recipe), "--output", str(run), *overrides]) == 0
    return [e for e in files.read_jsonl(run / "events.jsonl").records if e["kind"].startswith("capacity")]


@pytest.mark.parametrize("act", ["soften", "reinforce"])
def test_a_student_that_is_too_small_is_recognised(recipe, tmp_path, act):
    events = gaps(recipe, tmp_path / "run", f"stages.learn.capacity.act={act}")
    assert events and events[0]["kind"] == "capacity gap" and events[0]["skill"] == "reverse", events
    lines = [x for x in files.read_jsonl(tmp_path / "run" / "metrics.jsonl").records if x["stage"] == "learn"]
    after = [line for line in lines if line["step"] > events[0]["step"]]
    assert any("teacher_share/reverse" in line for line in after) == (act == "soften")
    assert (max(line["weight/policy/reverse"] for line in after) > 0.5) == (act == "reinforce")


def test_one_that_is_not_is_not(recipe, tmp_path):
    assert gaps(recipe, tmp_path / "run", "stages.learn.student=large") == []
    lines = [x for x in files.read_jsonl(tmp_path / "run" / "metrics.jsonl").records if "progress/reverse" in x]
    assert lines[-1]["progress/reverse"] > lines[0]["progress/reverse"] + 0.2, "it learns"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.learn.capacity={act: soften}", "capacity.act: soften acts on signals.response"),
        ("stages.learn.capacity={act: reinforce}", "capacity.act: reinforce acts on signals.policy"),
        ("stages.learn.capacity={window: 2}", "capacity.window"),
        ("stages.learn.rollout={prompts: 8, completions: 2, gold_completions: 2}", "none is tried"),
    ],
)
def test_an_act_without_its_signal_is_refused(recipe, tmp_path, capsys, change, message):
    signals = "{feature: {}}"
    arguments = [str(recipe), "--output", str(tmp_path / "run"), change, f"stages.learn.signals={signals}"]
    assert main(["train", *arguments, "stages.learn.controller={kind: fixed, feature: 1}"]) == 2
    assert message in capsys.readouterr().err
