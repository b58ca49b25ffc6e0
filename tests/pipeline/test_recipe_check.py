"""`rld check` and the start of `rld train` refuse the same recipes, before anything is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from rld.cli import main
from rld.errors import RldError
from rld.pipeline.plain_recipe import reason_to_ask_libraries
from rld.pipeline.recipe_check import check_recipe
from rld.recipe.cost import stage_costs
from rld.recipe.reading import read_recipe
from rld.recipe.registry import files

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 1}, {length: 2}], held_out: 6}
  rows: {file: rows.jsonl, held_out: 2}
models:
  tiny:
    new: llama
    config:
      {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2, tie_word_embeddings: true}
  file: ./model
stages:
  - {name: teacher, kind: sft, student: tiny, steps: 4, batch: 8}
  - name: student
    kind: distill
    student: tiny
    teachers: {teacher: {model: teacher, probe_prompts: 4}}
    signals: {policy: {}, response: {}, feature: {loss: {kind: cosine}}}
    curriculum: {use: ./tasks.py:Mine}
    rollout: {prompts: 2, completions: 4}
    steps: 2
"""

TASKS = """
import random

def copy(rng, *, length):
    word = "".join(rng.choices("abcd", k=length))
    return f"a:{word}=", word

def lucky(rng, *, length):
    return copy(random, length=length)

def odd(completions, *, scale=1, **_):
    return [len(completion) / scale for completion in completions]

class Mine:
    def __init__(self, levels, *, speed=1, **_):
        self.levels, self.speed = levels, 1 / speed

    def next(self, rng):
        return rng.choice(sorted(self.levels)), int(self.speed) - 1

    def observe(self, task, successes, attempts): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...

    def metrics(self):
        return {}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "{c}=", "answer": "{c}"}}\n' for c in "abcdabcd"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "lama"}')
    (tmp_path / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "table.csv").write_text("frage,antwort\na,b\n")
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "small.yaml"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("skills.rows.file=table.csv", "table.csv: no row has a column 'question'"),
        ("skills.rows.columns={answer: answr}", "answer: rows.jsonl has no column 'answr'; did you mean 'answer'?"),
        (
            "skills.rows.columns={quest: answer}",
            "rows of kind question_answer have no 'quest'; did you mean 'question'?",
        ),
        ("skills.rows.kind=question_anser", "no such kind of rows; did you mean 'question_answer'?"),
        (
            "skills.rows.file=model/model.safetensors",
            "rows come from .jsonl, .csv, .tsv, .json, .parquet files, and from text",
        ),
        ("skills.rows.held_out=4", "set held_out to at most 3 (now 4), or score on a file of its own"),
        ("skills.rows.held_out={file: rows.jsonl}", "all 4 different questions of its file are held-out questions too"),
        ("skills.rows.held_out={file: nowhere.jsonl}", "skills.rows.held_out.file: there is no file nowhere.jsonl"),
        ("skills.rows.held_out={file: table.csv}", "table.csv: no row has a column 'question'"),
        ("skills.copy.generator=./tasks.py:lucky", "it should take all random numbers from its rng"),
        ("tokenizer.characters=abc:=", "has 'd', which the tokenizer lacks"),
        ("max_new_tokens=2", "tokens with its end, and 2 are allowed"),
        ("models.tiny.config.max_position_embeddings=5", "do not fit into a context of 5"),
        ("models.tiny.config.num_attention_heads=3", "models.tiny: "),
        ("models.tiny.config.hidden_act=foo", "models.tiny: "),
        ("models.tiny.config.vocab_size=8", "models.tiny: config.vocab_size should be at least the 9 of its tokenizer"),
        ("models.tiny.config.num_key_value_heads=3", "models.tiny.config.num_key_value_heads should divide 2 heads"),
        ("stages.teacher.student=file", "cannot load"),
        ("stages.teacher.lora={target_modules: [nope]}", "stages.teacher.lora: Target modules {'nope'} not found"),
        ("stages.teacher.lora={modules_to_save: [lm_head]}", "lora: the adapter changes the model's output head"),
        ("stages.student.signals.feature.loss.layers={9: 1}", "feature layers 9: 1 do not exist"),
        ("stages.student.signals.feature.loss.layers={nope: model.layers.0}", "module 'nope'"),
        ("stages.student.signals.feature.loss={kind: relation, heads: 5}", "5"),
        ("stages.teacher.trainer.optim=adamw_8bit", "stages.teacher.trainer: "),
        ("stages.teacher.trainer.lr_scheduler_type=cosine_with_min_lr", "stages.teacher.trainer: One of min_lr"),
        ("stages.student.trainer.gradient_accumulation_steps=3", "stages.student.trainer: 8 rows an update cannot be"),
        ("stages.student.trainer.loss_type=nope", "nope"),
        ("stages.student.trainer.report_to=neptune", "stages.student.trainer.report_to: neptune is not installed"),
        ("stages.student.curriculum.options.speed=0", "building it raised ZeroDivisionError"),
        ("stages.student.curriculum.options.speed=fast", "building it raised TypeError"),
        ("stages.student.curriculum.options.speed=0.1", "next() returned ("),
        ("rewards=[{use: './tasks.py:odd', options: {scale: 0}}]", "raised ZeroDivisionError"),
    ],
)
def test_what_train_would_refuse_check_refuses(recipe, tmp_path, capsys, override, expected):
    assert main(["check", str(recipe), override]) == 2
    refusal = capsys.readouterr().err
    assert expected in refusal
    assert main(["train", str(recipe), "--output", str(tmp_path / "run"), override]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run" / "models").exists()


def test_a_question_with_several_gold_answers_may_be_a_mistake(recipe, capsys):
    with (recipe.parent / "rows.jsonl").open("a") as file:
        file.write('{"question": "a=", "answer": "d"}\n')
    assert main(["check", str(recipe)]) == 0
    printed = capsys.readouterr().err
    assert "caution: skill 'rows': 1 questions have several different gold answers" in printed


def test_check_shows_rows_an_example_and_what_may_be_a_mistake(recipe, capsys):
    assert main(["check", str(recipe), "stages.teacher.trainer.learning_rate=0.5"]) == 0
    printed = capsys.readouterr()
    assert "asked TRL" not in printed.out
    line = next(line for line in printed.out.splitlines() if line.startswith("│ rows") and "characters" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["rows", "1", "8", "4", "1 characters"]
    assert "│ rows  │ a=" in printed.out
    assert "caution: skill 'rows': 4 of 8 rows repeat a question" in printed.err
    assert "different gold answers" not in printed.err
    assert "caution: stage 'teacher': the learning rate 0.5 is unusual for weights that were random" in printed.err


@pytest.mark.parametrize(
    ("overrides", "scope"),
    [
        ([], "where it proves better"),
        (["stages.student.gate=off"], "where it proves better"),
        (["stages.student.controller=fixed"], "where it proves better"),
        (["stages.student.gate=off", "stages.student.controller=fixed"], "on all prompts"),
        (
            [
                "stages.student.gate=off",
                "stages.student.controller=fixed",
                "stages.student.teachers.teacher.skills=[copy]",
            ],
            "for copy",
        ),
    ],
)
def test_check_says_where_a_teacher_teaches(recipe, capsys, monkeypatch, overrides, scope):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["check", str(recipe), *overrides]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "teacher: teacher" in line]
    assert [line.rstrip("│ ").endswith(f", {scope}") for line in lines] == [True]


def test_reinforcement_of_a_trained_student_needs_no_teacher_and_no_other_option(recipe, tmp_path, capsys):
    alone = "stages.student={kind: distill, name: student, student: teacher, steps: 1, rollout: {prompts: 1}}"
    assert main(["check", str(recipe), alone]) == 0
    assert "caution: stage 'student': at its default learning rate, 5e-06, a model" in capsys.readouterr().err
    assert main(["train", str(recipe), alone, "--output", str(tmp_path / "run")]) == 0
    assert main(["check", str(recipe), alone.replace("steps", "signals: {response: {}}, steps")]) == 2
    assert "stages.student.signals.response needs teachers, and this stage has none" in capsys.readouterr().err


def test_a_gold_answer_that_earns_nothing_is_a_caution(recipe, capsys):
    override = "verifier={use: './tasks.py:odd', options: {scale: 4}}"
    assert main(["check", str(recipe), override]) == 0
    assert "caution: skill 'rows': the verifier ./tasks.py:odd gives the gold answer" in capsys.readouterr().err


@pytest.mark.parametrize("reward", ["{use: './tasks.py:odd', success_at: 0.5}", "{use: trl:think_format_reward}"])
def test_a_verifier_with_a_scale_of_its_own_or_of_trl_is_asked_as_in_training(recipe, capsys, reward):
    assert main(["check", str(recipe), f"rewards=[{reward}]"]) == 0
    is_paid = "odd" in reward
    assert ("gives the gold answer" not in capsys.readouterr().err) == is_paid


def test_a_deep_check_loads_models_and_has_them_answer(recipe, capsys):
    assert main(["check", str(recipe), "--deep"]) == 0
    assert "asked TRL, PEFT and transformers; checked in" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(files("recipes").values()), ids=lambda path: path.stem)
def test_shipped_recipes_pass_and_those_of_a_character_tokenizer_without_the_libraries(path):
    recipe = read_recipe(path)
    notes = check_recipe(recipe, path).notes
    has_cuts = any(stage.kind == "prune" for stage in recipe.stages)
    has_stored = has_cuts or any(getattr(model, "tokenizer", None) for model in recipe.models.values())
    is_plain = not has_stored and path.parent.name != "gpu"  # whose trainers have options that TRL alone knows
    assert any(note.startswith("asked") for note in notes) != is_plain, notes


@pytest.mark.parametrize("stem", ["quickstart"])
def test_what_a_plain_recipe_has_the_libraries_accept(stem):
    from rld.pipeline.deep_check import ask_libraries

    path = files("recipes")[stem]
    recipe = read_recipe(path)
    run = ask_libraries(recipe, path, deep=False)
    assert reason_to_ask_libraries(recipe, path, run.skill_rows) is None
    try:
        ask_libraries(read_recipe(path, ["max_new_tokens=3"]), path, deep=False)
    except RldError as error:
        assert "are allowed" in str(error)


PLANNED = """
name: planned
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}, {length: 3}], held_out: 6}
  rows: {file: rows.jsonl, held_out: 0}
models:
  tiny:
    new: llama
    config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
trainer: {learning_rate: 1e-2}
stages:
  - {name: first, kind: sft, student: tiny, steps: 80, batch: 16}
  - {name: copied, kind: sft, student: tiny, teacher: first, verify: false, steps: 4, batch: 16}
  - name: student
    kind: distill
    student: first
    teachers: {first: {model: first, probe_prompts: 4}}
    signals: {policy: {}, response: {}}
    rollout: {prompts: 4, completions: 4}
    steps: 6
  - {name: cut, kind: prune, model: student, intermediate_size: 48, calibration_rows: 24}
  - name: healed
    kind: distill
    student: cut
    skills: [rows]
    teachers: {first: {model: first, probe_prompts: 4}}
    signals: {policy: {}, response: {}, gold: null}
    rollout: {prompts: 8, completions: 4}
    retain: {probe_prompts: 8, prompts: 16, batch: 8}
    steps: 15
"""


def planned(recipe: Path, text: str = PLANNED, words: Sequence[str] = ("ab",)) -> Path:
    """Write a recipe, with a row for each word, beside another."""
    path = recipe.with_name("planned.yaml")
    path.write_text(text)
    rows = [json.dumps({"question": f"b:{word}=", "answer": word}) for word in words]
    path.with_name("rows.jsonl").write_text("\n".join(rows))
    return path


@pytest.mark.parametrize(("beyond", "num_told"), [(0, 1), (1, 0)])
def test_a_budget_that_the_answers_of_a_teacher_use_up_is_told(recipe, beyond, num_told):
    path = planned(recipe)
    lengths = {summary.skill: summary.lengths for summary in check_recipe(read_recipe(path), path).skills}
    answers = stage_costs(read_recipe(path), path.parent, lengths)["copied"].flops_by_account["answers"]
    limited = read_recipe(path, [f"stages.copied.stop.max_flops={answers + beyond}"])
    told = [text for text in check_recipe(limited, path).cautions if "before its first update" in text]
    assert len(told) == num_told and all("teacher 'first' to 64 rows cost about" in text for text in told)


@pytest.mark.parametrize("option", ["rollout.temperature=0.7", "rollout.refill=1", "trainer.use_vllm=true"])
def test_an_option_that_keeps_the_default_from_gold_answers_is_told(recipe, option):
    path, key = planned(recipe), f"stages.student.{option}"
    place = key.partition("=")[0]
    told = [text for text in check_recipe(read_recipe(path, [key]), path).cautions if "learning gold" in text]
    assert len(told) == 1 and f"{place} keeps the stage from learning gold answers" in told[0]
    off = read_recipe(path, [key, "stages.student.signals.gold=null"])
    assert not [text for text in check_recipe(off, path).cautions if "learning gold" in text]


@pytest.mark.parametrize(("attempts", "num_told"), [(4, 0), (4000, 1)])
def test_levels_that_a_curriculum_does_not_reach_are_told(recipe, attempts, num_told):
    """The stage `student` has 96 attempts, at two skills, and `copy` two levels."""
    path, key = planned(recipe), "stages.student.curriculum"
    read = read_recipe(path, [f"{key}={{use: staged:Staged, options: {{attempts: {attempts}}}}}"])
    told = [text for text in check_recipe(read, path).cautions if "draws level" in text]
    assert len(told) == num_told
    assert all(f"{key}: the stage draws level 0 of skill 'copy' at most, of 0 to 1" in text for text in told)


def test_a_stage_that_ends_before_its_first_update_says_so(recipe, tmp_path, capsys):
    path = planned(recipe, PLANNED.partition("  - name: student")[0])
    options = ["stages.first.steps=40", "stages.copied.stop.max_flops=1"]
    assert main(["train", str(path), *options, "--output", str(tmp_path / "run")]) == 0
    assert re.search(r"'copied' ends after step 0 .*; the student has no update", capsys.readouterr().err)


def test_planned_flops_are_those_that_a_run_counts(recipe, tmp_path):
    path = planned(recipe, words=[a + b for a in "abcd" for b in "abcd"])
    read = read_recipe(path)
    lengths = {summary.skill: summary.lengths for summary in check_recipe(read, path).skills}
    costs = stage_costs(read, tmp_path, lengths)
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 0
    for record in json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]:
        by_account = costs[record["name"]].flops_by_account
        assert costs[record["name"]].flops == pytest.approx(record["flops"], rel=0.25), record["name"]
        counted = {account: flops for account, flops in record["flops_by_account"].items() if flops}
        assert counted.keys() == {account for account, flops in by_account.items() if flops}
    large = {account: flops for account, flops in counted.items() if flops > 0.05 * record["flops"]}
    assert {"generation", "teachers", "student", "retention"} == large.keys()  # of the last stage
    assert {account: by_account[account] for account in large} == pytest.approx(large, rel=0.25)
