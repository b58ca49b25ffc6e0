"""Tasks of lm-eval beside held-out rows: with a stub of the package, and with the package where it is installed."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rld.cli import main
from rld.evaluation.lm_eval import LmEvalEvaluator
from rld.recipe.evaluation import LmEval
from rld.recipe.inputs import Inputs
from rld.recipe.reading import read_recipe
from rld.utils import files
from tests.support import tiny
from tests.support.lm_eval_task import write_lm_eval_task
from tests.support.runs import written

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
evaluation: [{kind: held_out}, {kind: lm_eval, tasks: [flip, turn], limit: 5}]
models:
  tiny: {new: llama, config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2}}
trainer: {bf16: false, use_cpu: true}
stages:
  - {name: one, kind: sft, student: tiny, steps: 3, batch: 4, evaluate_every: 1}
  - {name: two, kind: distill, student: one, teachers: {old: {model: one}}, signals: {response: {}}, steps: 1}
  - {name: scores, kind: evaluate, model: two}
"""
TASKS = """
def copy(rng, *, length):
    word = "".join(rng.choices("abcd", k=length))
    return f"{word}=", word
"""
CALLS: list[dict[str, Any]] = []


@pytest.fixture
def stub(monkeypatch) -> list[dict[str, Any]]:
    """A package lm_eval with two tasks, which changes what lm-eval changes: the model's mode and the random state."""

    class Manager:
        all_groups: list[str] = []

        def __init__(self, include_path: str | None = None, include_defaults: bool = True) -> None:
            self.all_subtasks = ["flip", "turn", "lost"] if include_defaults else ["mine"]

    def simple_evaluate(model: Any, **options: Any) -> dict[str, Any] | None:
        torch.manual_seed(0)
        random.seed(0)
        CALLS.append(options)
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return None  # as lm-eval does in other processes than the first
        scores = {"alias": "flip", "ppl,none": 12.5, "acc,none": 0.25, "acc_stderr,none": 0.1, "acc_norm,none": 0.5}
        lost = {"ppl,none": 12.5}
        better = {"acc": True, "acc_norm": True, "ppl": False}
        every = {"flip": scores, "turn": scores | {"acc_stderr,none": "N/A"}, "lost": lost}
        return {"results": every, "higher_is_better": dict.fromkeys(every, better)}

    def hflm(pretrained: Any, **options: Any) -> Any:
        pretrained.eval()
        return pretrained

    CALLS.clear()
    parts = {"": {}, ".evaluator": {"simple_evaluate": simple_evaluate}, ".models": {}}
    parts |= {".models.huggingface": {"HFLM": hflm}, ".tasks": {"TaskManager": Manager}}
    for name, values in parts.items():
        module = ModuleType(f"lm_eval{name}")
        module.__spec__ = importlib.util.spec_from_loader(f"lm_eval{name}", None)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)
    return CALLS


def test_scores_of_tasks_stand_beside_those_of_skills(stub, tmp_path):
    recipe, run = written(tmp_path, RECIPE, TASKS), tmp_path / "run"
    assert main(["check", str(recipe)]) == 0
    assert main(["train", str(recipe), "--output", str(run)]) == 0
    one, two, scores = files.read_json(run / "summary.json")["stages"]
    for stage in (one, two, scores):
        assert list(stage["after"]) == ["copy", "flip", "turn"] and stage["after"]["flip"] == 0.25
    assert two["before"] == one["after"] and two["teachers"]["old"]["scores"] == one["after"]
    measured = two["scorings"]["after"]
    assert measured["flip"]["acc"] == pytest.approx({"value": 0.25, "low": 0.054, "high": 0.446})
    assert list(measured["turn"]) == ["acc", "ppl", "acc_norm"]
    logged = files.read_jsonl(run / "metrics.jsonl").records
    assert [line["score/flip"] for line in logged if "score/flip" in line] == [0.25, 0.25]
    assert "flip" in (run / "report.html").read_text()
    # before and after `one`, twice on the way, after `two`, whose others are those of `one`, and in `scores`
    assert len(stub) == 6 and stub[0]["limit"] == 5 and not stub[0]["apply_chat_template"]


def test_without_held_out_rows_the_tasks_alone_are_scored(stub, tmp_path, monkeypatch):
    text = RECIPE.replace("{kind: held_out}, ", "").replace(", evaluate_every: 1", "").partition("  - {name: two")[0]
    recipe, run = written(tmp_path, text, TASKS), tmp_path / "run"
    assert main(["train", str(recipe), "--output", str(run)]) == 0
    assert list(files.read_json(run / "summary.json")["stages"][-1]["after"]) == ["flip", "turn"]
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["evaluate", str(recipe), "--model", str(run / "student")]) == 0


def test_the_random_state_and_the_models_mode_stay_as_they_were(stub, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    evaluator = LmEvalEvaluator(LmEval(kind="lm_eval", tasks=["flip"]), Path("r.yaml"), True)
    model, states = tiny.model().train(), (torch.get_rng_state(), random.getstate())
    assert evaluator.evaluate(model, tiny.tokenizer())["flip"]["acc"].value == 0.25
    assert os.environ["LOCAL_RANK"] == "1"
    assert model.training and torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert stub[-1]["apply_chat_template"]


def test_a_stage_depends_on_the_files_of_own_tasks(stub, tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "flip.yaml").write_text("task: flip")
    (tmp_path / "mine" / "data" / "rows.jsonl").write_text("{}")
    recipe = read_recipe(written(tmp_path, RECIPE.replace("limit: 5", "include_path: ./mine"), TASKS))
    before = Inputs.of(recipe, tmp_path, launch={})
    assert {"./mine/flip.yaml", "./mine/data/rows.jsonl"} <= before.files.keys()
    (tmp_path / "mine" / "data" / "rows.jsonl").write_text("{ }")
    after = Inputs.of(recipe, tmp_path, launch={})
    assert all(before.fingerprint(stage) != after.fingerprint(stage) for stage in ("one", "scores"))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("[flip, turn]", "[filp]", "there is no task 'filp' in lm-eval; did you mean 'flip'?"),
        ("[flip, turn]", "[flip, flip]", "a task is named twice"),
        (
            "copy: {gen",
            "flip: {gen",
            "small.yaml:7: evaluation.1.tasks: 'flip' is the name of a skill or of another task",
        ),
        ("limit: 5", "include_path: ./mine", "small.yaml:7: evaluation.1.include_path: there is no folder ./mine"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(stub, tmp_path, capsys, old, new, text):
    recipe = written(tmp_path, RECIPE.replace(old, new), TASKS)
    assert main(["check", str(recipe)]) == 2
    assert text in capsys.readouterr().err


def test_a_task_without_a_score_to_compare_by_is_refused_before_anything_trains(stub, tmp_path, capsys):
    recipe = written(tmp_path, RECIPE.replace("[flip, turn]", "[lost]"), TASKS)
    assert main(["train", str(recipe), "--output", str(tmp_path / "run")]) == 2
    assert "lost has no score that is between 0 and 1" in capsys.readouterr().err
    assert not (tmp_path / "run" / "models").exists()


def test_lm_eval_is_asked_for_where_it_is_not_installed(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest)
    )
    assert main(["check", str(written(tmp_path, RECIPE, TASKS))]) == 2
    assert "lm_eval needs the package lm-eval; install it with: pip install -e '.[lm_eval]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_a_task_of_ones_own_is_scored_by_lm_eval_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = write_lm_eval_task(tmp_path)
    options = LmEval(kind="lm_eval", tasks=["own"], include_path="./mine")
    evaluator = LmEvalEvaluator(options, tmp_path / "r.yaml", is_chat=False)
    evaluator.require_possible()
    model, tokenizer = tiny.model(), tiny.tokenizer()
    score = evaluator.evaluate(model, tokenizer)["own"]["acc"]
    right = 0
    for row in rows:
        ids = torch.tensor([tokenizer(row["q"])["input_ids"]])
        logits = model(ids).logits[0, -1]
        choices = [int(logits[tokenizer(text)["input_ids"][0]] * 1e6) for text in "ab"]
        right += choices.index(max(choices)) == row["label"]
    assert score.value == right / 8 and score.low < score.value < score.high
