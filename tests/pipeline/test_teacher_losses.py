"""Levels by a teacher's loss: rows of files from easy to hard, measured once, and the same after a stop."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rld.cli import main
from rld.data.generators import item_source
from rld.data.ordered_rows import OrderedRows
from rld.data.prompt_stream import PromptStream
from rld.data.skill_rows import SkillRows
from rld.errors import DataError
from rld.pipeline.stage_training import StageTraining
from rld.recipe import registry
from rld.recipe.prompts import Prompts
from rld.recipe.skills import FileSkill
from rld.utils import files
from tests.support.runs import Killed, one_thread, written

__all__ = ["one_thread"]

RECIPE = """
name: ordered
tokenizer: {characters: "abcd:="}
max_new_tokens: 6
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}, {length: 1}], held_out: 4}
  swap: {generator: ./tasks.py:swap, held_out: 4}
  words: {file: ./words.jsonl, held_out: 2}
models:
  tiny:
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}
trainer: {learning_rate: 1e-2}
stages:
  - {name: copier, kind: sft, student: tiny, skills: [copy, words], steps: 30, batch: 16}
  - name: student
    kind: distill
    student: tiny
    teachers:
      copier: {model: copier, probe_prompts: 2, skills: [copy, words]}
      other: {model: tiny, probe_prompts: 2, skills: [copy, words]}
    signals: {policy: {}, response: {}}
    curriculum: {use: competence:SquareRoot, options: {attempts: 64, start: 0.3}, levels_by: teacher_loss}
    rollout: {prompts: 6, completions: 2}
    steps: 4
    checkpoint_every: 2
"""

TASKS = """
def copy(rng, *, length):
    word = "".join(rng.choices("abcd", k=length))
    return f"a:{word}=", "a" if length == 1 else word

def swap(rng):
    return "b:" + "".join(rng.choices("abcd", k=3)) + "=", "b"
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcd", k=rng.randint(1, 5))) for _ in range(26)]
    rows = [json.dumps({"question": f"c:{i % 3 * 'd'}{word}=", "answer": word}) for i, word in enumerate(words)]
    (tmp_path / "words.jsonl").write_text("\n".join(dict.fromkeys(rows)))
    return written(tmp_path, RECIPE, TASKS)


def losses(model: Path, rows: list[dict]) -> list[float]:
    """Nats per byte of the answers without their ends, one row at a time."""
    student, tokenizer = AutoModelForCausalLM.from_pretrained(model).double(), AutoTokenizer.from_pretrained(model)
    measured = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        logits = student(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        measured.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")))
    return [total / len(row["answer"]) for total, row in zip(measured, rows, strict=True)]


def events(run: Path) -> list[dict]:
    return [line for line in files.read_jsonl(run / "events.jsonl").records if line["kind"] == "difficulty"]


def levels(run: Path) -> list[tuple[float, ...]]:
    lines = files.read_jsonl(run / "metrics.jsonl").records
    return [(line["level/copy"], line["level/words"], line["loss"]) for line in lines if "level/copy" in line]


def test_levels_are_ordered_by_the_loss_of_the_best_teacher_and_stay_so_after_a_stop(recipe, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["train", str(recipe), "--output", str(whole)]) == 0
    copy, words = events(whole)
    assert copy["about"] == "levels from easy to hard: 1, 0", "the second level has one answer, which is learnt first"
    assert re.match(r"the mean loss of teacher copier on gold answers is [0-9.]+, [0-9.]+, in", copy["measured"])
    assert re.fullmatch(r"2\d rows in 10 levels", words["about"])
    finish = StageTraining.finish

    def kill(self, *args, **options):
        if self.stage.name == "student":
            raise Killed
        finish(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageTraining, "finish", kill)
        with pytest.raises(Killed):
            main(["train", str(recipe), "--output", str(killed)])
    checkpoints = sorted((killed / "checkpoints" / "student").glob("checkpoint-*"))
    sources = files.read_json(checkpoints[-1] / "rld_state.json")["stream"]["sources"]
    source = item_source("words", FileSkill(file="words.jsonl", held_out=2), recipe.parent)
    rows = OrderedRows(SkillRows("words", source, 2, Prompts(), seed=0, held_out_questions=set()))
    rows.arrange(losses(whole / "models" / "copier", [row for _, row in rows.examples()]))
    assert sources == {"copy": {"levels": [1, 0]}, "words": {"levels": rows.levels_U}}
    (checkpoints[-1] / "rld_files.json").unlink()  # it goes on from the checkpoint before
    assert main(["train", str(recipe), "--output", str(killed), "--resume"]) == 0
    assert len(events(killed)) == 2, "measured once"
    assert levels(killed) == levels(whole)
    assert levels(whole)[-1][1] > levels(whole)[0][1], "levels have opened"
    flops = [files.read_json(run / "summary.json")["stages"][-1]["flops_by_account"] for run in (whole, killed)]
    assert flops[0] == flops[1]


def test_rows_are_in_levels_of_equal_size_whatever_their_own(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a", "level": i % 2} for i in range(25)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = item_source("few", FileSkill(file="rows.jsonl", held_out=0), tmp_path)
    ordered = OrderedRows(SkillRows("few", source, 0, Prompts(), seed=0, held_out_questions=set()))
    questions = [int(row["prompt"][1:]) for _, row in ordered.examples()]
    ordered.arrange([-float(question) for question in questions])
    again = OrderedRows(ordered.source)
    again.load_state_dict(json.loads(json.dumps(ordered.state_dict())))
    drawn = [{int(again.draw(level, random.Random(i))["prompt"][1:]) for i in range(80)} for level in range(10)]
    assert [question for level in drawn for question in sorted(level, reverse=True)] == list(range(24, -1, -1))
    assert {len(level) for level in drawn} == {2, 3}
    assert again.draw(7, random.Random(0))["level"] == 7


def test_rows_that_were_looked_at_before_their_levels_were_known_are_picked_anew(tmp_path):
    """A trainer looks at the first row when it is built."""
    (tmp_path / "rows.jsonl").write_text('{"question": "hard", "answer": "a"}\n{"question": "easy", "answer": "a"}\n')
    source = item_source("few", FileSkill(file="rows.jsonl", held_out=0), tmp_path)
    rows = OrderedRows(SkillRows("a", source, 0, Prompts(), seed=0, held_out_questions=set()))
    curriculum = registry.load("curricula", "competence:SquareRoot", tmp_path)({"a": rows.num_levels})
    stream = PromptStream({"a": rows}, curriculum, seed=0, num_slots=8)
    stream.prompts_per_update = 4
    assert stream.dataset[0]["prompt"] == "hard"
    rows.arrange([2.0, 1.0])
    stream.restart()
    assert stream.dataset[:4]["prompt"] == ["easy"] * 4


def test_documents_have_no_order(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    source = item_source("texts", FileSkill(file="texts.jsonl", kind="plain_text", block=8, held_out=0), tmp_path)
    with pytest.raises(DataError, match="skill 'texts': documents are learnt in passes over all of them"):
        OrderedRows(SkillRows("texts", source, 0, Prompts(), seed=0, held_out_questions=set()))


TEACHERS = RECIPE[RECIPE.index("    teachers:") : RECIPE.index("    signals:")]
UNKNOWN = {
    '=", "b"': '=", ""',
    "swap, held_out: 4": "swap, held_out: 0",
    "[copy, words]}\n    signals": "[copy, words, swap]}\n    signals",
    "trainer:": "rewards: [{use: ./tasks.py:paid}]\ntrainer:",
}
"""Questions of a taught skill that have no gold answer."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (UNKNOWN, "skill 'swap' has questions without a gold answer, by which a teacher's loss is measured"),
        ({TEACHERS: ""}, "stages.student.curriculum.levels_by needs teachers, and this stage has none"),
        (
            {"steps: 4": "steps: 4\n    target: [copy]"},
            "small.yaml:23: stages.student.curriculum.levels_by goes without",
        ),
        (
            {"steps: 4": "steps: 4\n    skills: [swap]", "skills: [copy, words]}": "skills: [swap]}"},
            "levels_by orders rows, and no skill of stage 'student' has two",
        ),
    ],
)
def test_what_cannot_be_ordered_is_refused_before_anything_is_trained(recipe, capsys, changes, message):
    tasks = TASKS + "\ndef paid(completions, **_):\n    return [0.5] * len(completions)\n"
    text = RECIPE
    for old, new in changes.items():
        text, tasks = text.replace(old, new), tasks.replace(old, new)
    assert main(["check", str(written(recipe.parent, text, tasks))]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
