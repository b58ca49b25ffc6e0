"""Whole runs of a small recipe: what they leave behind, and that an interrupted one ends like an uninterrupted one."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from rld.cli import main
from rld.pipeline.licences import licence_of_teacher
from rld.recipe.reading import read_recipe
from rld.recipe.teachers import ServedTeacher, TeacherSpec
from tests.support import tiny
from tests.support.processes import FORK_SERVER, exit_codes, train_quietly
from tests.support.runs import one_thread, recipe, whole

__all__ = ["one_thread", "recipe", "whole"]

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 1}, {length: 2}], held_out: 6}
  flip: {generator: ./tasks.py:flip, levels: [{length: 1}, {length: 2}], held_out: 6}
models:
  tiny:
    new: llama
    config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
rewards:
  - use: answers:exact_match
  - {use: ./tasks.py:share, weight: 0.5}
trainer: {lr_scheduler_type: linear, warmup_steps: 0, learning_rate: 1e-2}
stages:
  - {name: teacher, kind: sft, student: tiny, steps: 40, batch: 8, checkpoint_every: 6}
  - name: student
    kind: distill
    student: tiny
    teachers: {teacher: {model: teacher, probe_prompts: 4}}
    signals: {policy: {teacher_reward: 0.1}, response: {}, feature: {}, gold: null}
    controller: {kind: gap, decide_every: 2}
    curriculum: {use: ./tasks.py:Mine}
    rollout: {prompts: 2, completions: 4}
    retain: {skills: [copy], probe_prompts: 4, prompts: 6, batch: 2}
    audit: {use: answers:exact_match, share: 0.5}
    steps: 14
    checkpoint_every: 4
"""

TASKS = """
import random

def _word(rng, length):
    return "".join(rng.choices("abcd", k=length))

def copy(rng, *, length):
    word = _word(rng, length)
    return f"a:{word}=", word

def flip(rng, *, length):
    word = _word(rng, length)
    return f"b:{word}=", word[::-1]

def share(completions, answer, **_):
    return [sum(a == b for a, b in zip(c, g)) / 4 for c, g in zip(completions, answer)]

class Mine:
    def __init__(self, levels):
        self.levels, self.seen = levels, 0

    def next(self, rng):
        skill = rng.choice(sorted(self.levels))
        return skill, self.seen % self.levels[skill]

    def observe(self, task, successes, attempts):
        self.seen += attempts

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]

    def metrics(self):
        return {"level/all": float(self.seen)}
"""


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run logged, without the clocks."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds" and "time/" not in key} for line in lines]


def test_a_run_leaves_what_others_rely_on(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["heldout_rows"] == {"copy": 6, "flip": 6}
    teacher, student = summary["stages"]
    assert (teacher["kind"], student["kind"]) == ("sft", "distill")
    for record in (student["before"], student["after"], student["teachers"]["teacher"]["scores"]):
        assert set(record) == {"copy", "flip"}
        assert all(0 <= score <= 1 for score in record.values())
    assert student["teachers"]["teacher"]["scores"] == teacher["after"]
    model = AutoModelForCausalLM.from_pretrained(whole / "student")
    assert model.num_parameters() == student["student"]["parameters"]
    assert AutoTokenizer.from_pretrained(whole / "student").decode([3, 4]) == "ab"
    assert (whole / "report.html").stat().st_size > 1000
    assert not list((whole / "checkpoints").glob("*/checkpoint-*"))


def test_a_run_leaves_answers_to_some_held_out_rows(whole):
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert [(sample["stage"], sample["skill"]) for sample in samples] == [
        (stage, skill) for stage in ("teacher", "student") for skill in ("copy", "flip") for _ in range(3)
    ]
    for sample in samples:
        for answer in (sample["before"], sample["after"], *sample["teachers"].values()):
            assert answer["is_correct"] == (answer["answer"].strip() == sample["gold"])
    teacher, student = samples[:6], samples[6:]
    assert [sample["teachers"]["teacher"] for sample in student] == [sample["after"] for sample in teacher]
    assert [sample["prompt"] for sample in student] == [sample["prompt"] for sample in teacher]
    assert any(sample["after"]["is_correct"] for sample in teacher)


def test_every_student_has_a_model_card(whole):
    for folder, stage in ((whole / "models/teacher", "teacher"), (whole / "student", "student")):
        card, record = ModelCard.load(folder / "README.md"), json.loads((folder / "rld_stage.json").read_text())
        assert card.data.library_name == "transformers" and "rld" in card.data.tags
        assert f"# small: {stage}" in card.text and "1 process on cpu" in card.text and "torch 2" in card.text
        for skill in ("copy", "flip"):
            ends = [record["scorings"][scoring][skill]["solved"] for scoring in ("before", "after")]
            cells = [f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})" for score in ends]
            assert f"| {skill} | solved | 6 | {' | '.join(cells)} |" in card.text
            assert f"| {skill} | `./tasks.py:{skill}` | as many as needed | learned and scored | 6 |" in card.text
        recipe = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
        assert recipe == json.loads((whole / "recipe.json").read_text())
        command = json.loads((whole / "summary.json").read_text())["command"]
        assert f"## How to make it anew\n\n```sh\n{command}\n```" in card.text
        assert "No score fell by more than chance" in card.text
    assert "| response | 0." in card.text
    assert "| student | teacher | `teacher` | none: it started from random weights | " in card.text
    lesson = (
        "rewards `answers:exact_match` x 1, `./tasks.py:share` x 0.5 (policy); teachers `teacher` (response, feature)"
    )
    assert f"| student | distill | {lesson}: copy, flip | 14 |" in card.text
    prompts = record["teaching"]["teacher"]["prompts"]
    assert prompts > 0
    row = rf"\| teacher teacher \| policy, response, feature \| \S+ \| [0-9.]+% \| {prompts} \|"
    assert re.search(row, card.text.split("## Cost")[1]), "what the stage's FLOPs were for"


def test_the_recipe_in_a_model_card_trains_beside_its_files(whole, recipe, tmp_path):
    text = ModelCard.load(whole / "student" / "README.md").text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "again.yaml").write_text(text)
    assert read_recipe(tmp_path / "again.yaml").model_dump() == read_recipe(recipe).model_dump()


LOSING = """
name: losing
tokenizer: {characters: "ab="}
max_new_tokens: 4
skills: {copy: {generator: "./tasks.py:copy", held_out: 40}, other: {generator: "./tasks.py:other", held_out: 40}}
models: {tiny: {new: llama, config: {hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}}
stages:
  - {name: learn, kind: sft, student: tiny, skills: [copy], steps: 25, batch: 16, trainer: {learning_rate: 0.02}}
"""  # noqa: E501 - one line is one key


def test_a_model_card_says_what_was_forgotten_and_under_which_licence_it_began(tmp_path):
    """A model that has learnt one skill learns another one, which has other answers to the same prompts."""
    task = "def {}(rng):\n    return ''.join(rng.choices('ab', k=9)) + '=', '{}'\n"
    (tmp_path / "tasks.py").write_text(task.format("copy", "a") + task.format("other", "b"))
    recipe = tmp_path / "losing.yaml"
    recipe.write_text(LOSING)
    assert main(["train", str(recipe), "--output", str(tmp_path / "run")]) == 0
    base = (tmp_path / "run" / "student").rename(tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: my-licence\n---\n")
    overrides = ["stages.learn.student=./base", "stages.learn.skills=[other]"]
    assert main(["train", str(recipe), "--output", str(tmp_path / "again"), *overrides]) == 0
    card = ModelCard.load(tmp_path / "again" / "student" / "README.md")
    assert (card.data.license, card.data.get("license_name")) == ("other", "my-licence")
    assert "Licence of the weights from which it started: my-licence." in card.text
    assert "| copy | 1.000 | 0.000 | -1.000 (" in card.text.split("## What was forgotten")[1]


def test_no_path_of_a_model_is_read_as_markdown_in_its_card(tmp_path):
    folder = "a`b``c | <img src=x>"
    tiny.model().save_pretrained(tmp_path / folder)
    tiny.tokenizer().save_pretrained(tmp_path / folder)
    (tmp_path / folder / "README.md").write_text("---\nlicense: '<b>|mine`'\n---\n")
    (tmp_path / "tasks.py").write_text('def copy(rng):\n    return f"{rng.choice(\'abcd\')}:", "a"\n')
    path = tmp_path / "recipe.yaml"
    stage = {"name": "cut", "kind": "prune", "model": f"./{folder}", "layers": 1}
    skills = {"copy": {"generator": "./tasks.py:copy", "held_out": 1}}
    path.write_text(yaml.safe_dump({"name": "r", "max_new_tokens": 1, "skills": skills, "stages": [stage]}))
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 0
    card = ModelCard.load(tmp_path / "run" / "student" / "README.md").text
    assert f"out of ``` ./{folder} ``` (1 layers" in card.replace("\n", " ")
    assert "Licence of the weights from which it started: bmine." in card


def test_licences_of_teachers_are_those_that_their_own_cards_name(tmp_path):
    for name, head in (("large", "license: [mit, apache-2.0]"), ("adapter", "tags: [peft]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"---\n{head}\n---\n# text\n")
    recipe = SimpleNamespace(origin=lambda reference: reference, models={})
    context: Any = SimpleNamespace(source=tmp_path / "recipe.yaml", recipe=recipe)
    specs = [TeacherSpec(model="./large"), TeacherSpec(model="./large", adapter="./adapter")]
    served = ServedTeacher(url="http://127.0.0.1:1")
    assert [licence_of_teacher(context, spec) for spec in (*specs, served)] == [
        "mit, apache-2.0",
        "mit, apache-2.0; of its adapter: unknown",
        "unknown: a server does not tell it",
    ]


def test_the_log_has_the_promised_names(whole):
    lines = metrics(whole)
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("teacher", step) for step in range(1, 41)),
        *(("student", step) for step in range(1, 15)),
    ]
    assert "loss/sft" in lines[0]
    last = lines[-1]
    for name in ("policy", "response", "feature"):
        assert {f"loss/{name}", f"weight/{name}", f"weight/{name}/copy"} <= last.keys()
    for name in (
        "teacher/teacher/weight/flip",
        "reward/exact_match",
        "reward/share",
        "divergence/teacher",
        "level/all",
    ):
        assert name in last
    timed = {key for key in json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1]) if "time/" in key}
    assert timed == {
        f"time/{part}"
        for part in (
            "generation",
            "rollout",
            "rewards",
            "gate",
            "teachers",
            "student",
            "retention",
            "controller",
            "optimizer",
            "checkpoints",
        )
    }
    assert {"progress/copy", "grad/policy", "weight/reference/copy"} <= {key for line in lines for key in line}
    assert last["flops"] > lines[0]["flops"] > 0
    assert last["tokens/scored"] > last["tokens/generated"] > 0
    stages = json.loads((whole / "summary.json").read_text())["stages"]
    assert [sum(stage["flops_by_account"].values()) for stage in stages] == [stage["flops"] for stage in stages]
    assert [account for account, flops in stages[0]["flops_by_account"].items() if flops] == ["student"]
    assert all(stages[1]["flops_by_account"].values())
    for stage in stages:
        parts = {account: sum(parts.values()) for account, parts in stage["flops_by_part"].items()}
        assert parts == {account: flops for account, flops in stage["flops_by_account"].items() if flops}


def wait_for(run: Path, stage: str, step: int, process: BaseProcess) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.exitcode is not None:
            pytest.fail(f"ended early: {run.with_suffix('.log').read_text()}")
        log = run / "metrics.jsonl"
        if log.exists() and any(
            (line["stage"], line["step"]) >= (stage, step)
            for line in map(json.loads, log.read_text().splitlines(keepends=False)[:-1])
            if line["stage"] == stage
        ):
            return
        time.sleep(0.01)
    pytest.fail(f"no step {step} of {stage} in two minutes")


@pytest.mark.parametrize(
    ("how", "stage", "step"),
    [(signal.SIGKILL, "student", 6), (signal.SIGTERM, "student", 6), (signal.SIGINT, "teacher", 8)],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(recipe, whole, tmp_path, how, stage, step):
    output = tmp_path / "run"
    command = [str(recipe), "--output", str(output)]
    process = FORK_SERVER.Process(target=train_quietly, args=(command, output.with_suffix(".log")))
    process.start()
    wait_for(output, stage, step, process)
    os.kill(process.pid, how)
    (code,) = exit_codes([process], 60.0)
    if how == signal.SIGKILL:
        (output / "checkpoints" / stage / "checkpoint-99").mkdir()  # as if killed while writing one
    elif code == 0:
        pytest.skip("the run was over before the signal came")
    else:
        assert code == 128 + how
        assert json.loads((output / "summary.json").read_text())["status"] == "stopped"
    assert main(["train", str(recipe), "--output", str(output), "--resume"]) == 0
    assert metrics(output) == metrics(whole)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(run / "student") for run in (output, whole))
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert a.equal(b), name


def test_a_run_is_not_overwritten(recipe, whole, capsys):
    assert main(["train", str(recipe), "--output", str(whole)]) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(recipe, whole):
    before = (whole / "student" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", str(recipe), "--output", str(whole), "--resume"]) == 0
    assert (whole / "student" / "model.safetensors").stat().st_mtime_ns == before


def test_evaluate_scores_the_stored_student(recipe, whole, capsys):
    assert main(["evaluate", str(whole / "student"), str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "copy" in printed
    assert "6" in printed


def test_a_reward_that_raises_stops_the_run_and_says_where(recipe, tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    (tmp_path / "tasks.py").write_text(
        TASKS.replace("return [sum", "_['trainer_state'].global_step and 1 / 0\n    return [sum")
    )
    broken.write_text(
        RECIPE.replace("steps: 40,", "steps: 1,")
    )  # what raises at once is refused before the first stage
    assert main(["train", str(broken), "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    for part in ("reward 'share'", "ZeroDivisionError", "tasks.py:", "row 0", "completion"):
        assert part in message
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
