"""A stage with a target: what is refused before it trains, and that its shares survive a stop."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from rld.cli import main
from rld.data.generators import item_source
from rld.data.reserved_rows import WithoutRows, reserved_rows
from rld.data.skill_rows import SkillRows
from rld.errors import DataError
from rld.pipeline.stage_training import StageTraining
from rld.recipe.prompts import Prompts
from rld.recipe.skills import FileSkill
from rld.utils import files
from tests.support.runs import Killed, one_thread, written

__all__ = ["one_thread"]

RECIPE = """
name: targeted
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, held_out: 4}
  swap: {generator: ./tasks.py:swap, held_out: 4}
  open: {file: ./rows.jsonl, held_out: 0}
models:
  tiny:
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
rewards: [{use: ./tasks.py:short}]
stages:
  - name: student
    kind: distill
    student: tiny
    skills: [copy, swap]
    signals: {policy: {}}
    target: [copy]
    controller: {kind: gap, decide_every: 2}
    rollout: {prompts: 4, completions: 2}
    steps: 8
    checkpoint_every: 3
"""

TASKS = """
def copy(rng):
    word = "".join(rng.choices("abcd", k=2))
    return f"a:{word}=", word

def swap(rng):
    word = "".join(rng.choices("abcd", k=2))
    return f"b:{word}=", word[::-1]

def short(completions, entry, **_):
    return [float(0 < len(text.strip()) <= 2) for text in completions]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "rows.jsonl").write_text("".join(f'{{"prompt": "c:{a}=", "length": 2}}\n' for a in "abcd"))
    return written(folder, RECIPE, TASKS)


def lines(run: Path) -> list[dict]:
    keys = ("step", "share/copy", "share/swap", "transfer/copy", "transfer/swap", "loss")
    return [{key: line.get(key) for key in keys} for line in files.read_jsonl(run / "metrics.jsonl").records]


def test_shares_move_and_go_on_after_a_stop(recipe, tmp_path, monkeypatch):
    assert main(["train", str(recipe), "--output", str(tmp_path / "whole")]) == 0
    whole = lines(tmp_path / "whole")
    assert [line["step"] for line in whole if line["transfer/copy"] is not None] == [2, 4, 6, 8]
    assert whole[-1]["share/copy"] != 0.5
    assert whole[-1]["share/copy"] + whole[-1]["share/swap"] == pytest.approx(1)
    finish = StageTraining.finish

    def killed(self, *args, **options):
        raise Killed

    monkeypatch.setattr(StageTraining, "finish", killed)
    with pytest.raises(Killed):
        main(["train", str(recipe), "--output", str(tmp_path / "killed")])
    monkeypatch.setattr(StageTraining, "finish", finish)
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "student" / "checkpoint-8")
    assert main(["train", str(recipe), "--output", str(tmp_path / "killed"), "--resume"]) == 0
    assert lines(tmp_path / "killed") == whole


def test_the_rows_by_which_the_target_is_measured_are_not_trained_on(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "q{i}", "answer": "a"}}\n' for i in range(12)))
    skill = FileSkill(file="rows.jsonl", held_out=0)
    source = SkillRows("few", item_source("few", skill, tmp_path), 0, Prompts(), seed=1, held_out_questions=set())
    reserved = reserved_rows(source, 16)
    prompts = {row["prompt"] for row in reserved}
    assert len(reserved) == len(prompts) == 4, "a third of the file"
    assert reserved_rows(source, 16) == reserved
    assert len(reserved_rows(source, 2)) <= 2
    with pytest.raises(DataError, match="skill 'few': too few rows to measure a target by"):
        (tmp_path / "two.jsonl").write_text("".join(f'{{"question": "q{i}", "answer": "a"}}\n' for i in range(2)))
        two = item_source("few", FileSkill(file="two.jsonl", held_out=0), tmp_path)
        reserved_rows(SkillRows("few", two, 0, Prompts(), seed=1, held_out_questions=set()), 16)
    others = WithoutRows(source, reserved)
    drawn = {others.draw(0, random.Random(i))["prompt"] for i in range(200)}
    assert len(drawn) == 8 and not drawn & prompts
    assert not {row["prompt"] for row in others.probe(8)} & prompts
    with pytest.raises(DataError, match="give it more rows"):
        WithoutRows(source, source.probe(400)).draw(0, random.Random(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.student.target=[cpoy]", "'cpoy' is no skill; did you mean 'copy'"),
        ("stages.student.target=[open]", "skill 'open' has questions without a gold answer"),
        ("stages.student.target=[]", "target"),
        ("stages.student.curriculum={use: staged:Staged}", "this curriculum does not follow"),
        (
            "stages.student.curriculum={use: fixed:Uniform, options: {weights: {copy: 1, swap: 1}}}",
            "this curriculum does not follow",
        ),
        ("stages.student.skills=[copy, swap, open]", "skill 'open' has questions without a gold answer"),
    ],
)
def test_what_a_target_cannot_be_is_refused(recipe, tmp_path, capsys, change, message):
    assert main(["train", str(recipe), "--output", str(tmp_path / "run"), change]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
