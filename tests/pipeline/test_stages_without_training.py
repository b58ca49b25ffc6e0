"""Stages that train nothing: models that are merged, and models that are scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rld.cli import main
from rld.utils import files
from tests.support import tiny
from tests.support.runs import COPY_TASKS, recipe, whole

__all__ = ["recipe", "whole"]

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
  flip: {generator: ./tasks.py:copy, levels: [{length: 3}], held_out: 3}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}}
trainer: {learning_rate: 1e-2}
stages:
  - {name: one, kind: sft, student: tiny, steps: 2, batch: 8, skills: [copy]}
  - {name: two, kind: sft, student: one, steps: 2, batch: 8, skills: [flip]}
  - {name: same, kind: merge, models: [two, two], method: slerp, weights: [1, 2]}
  - {name: mean, kind: merge, models: [one, two], weights: [3, 1]}
  - {name: sum, kind: merge, models: [two, one], base: one, method: task_arithmetic}
  - {name: scores, kind: evaluate, model: mean, skills: [flip]}
  - {name: last, kind: sft, student: mean, steps: 2, batch: 8}
  - {name: cut, kind: prune, model: last, layers: 1, layers_by: influence, intermediate_size: 24, calibration_rows: 4}
  - name: healed
    kind: distill
    student: cut
    teachers: {last: {model: last, probe_prompts: 2}}
    signals: {response: {}, feature: {loss: {kind: cosine, layers: uniform}}}
    rollout: {prompts: 2, completions: 4}
    steps: 2
  - {name: final_scores, kind: evaluate, model: healed}
"""


def test_a_merged_model_has_the_weights_of_the_formula_and_later_stages_use_it(whole):
    one, two, same, mean, total = (
        load_file(whole / "models" / name / "model.safetensors") for name in ("one", "two", "same", "mean", "sum")
    )
    assert all((same[name] == weight).all() for name, weight in two.items())
    assert all((total[name] - weight).abs().max() < 1e-6 for name, weight in two.items())
    name = "model.layers.1.mlp.up_proj.weight"
    assert (mean[name] - (0.75 * one[name] + 0.25 * two[name])).abs().max() < 1e-6
    stages = {stage["name"]: stage for stage in files.read_json(whole / "summary.json")["stages"]}
    assert stages["last"]["before"] == stages["mean"]["after"]
    assert stages["mean"]["merged"]["two"]["scores"] == stages["two"]["after"]
    assert stages["mean"]["flops"] == stages["scores"]["flops"] == 0
    assert (whole / "student" / "model.safetensors").is_file()
    card = (whole / "models" / "sum" / "README.md").read_text()
    assert "merged with `rld` by `task_arithmetic`" in card
    assert "| `one` | base |" in card


def test_an_evaluation_holds_the_answer_to_each_row_of_its_skills(whole):
    lines = files.read_jsonl(whole / "predictions" / "scores" / "after.jsonl").records
    assert [line["skill"] for line in lines] == ["flip"] * 3
    stages = {stage["name"]: stage for stage in files.read_json(whole / "summary.json")["stages"]}
    assert stages["scores"]["after"] == {"flip": sum(line["reward"] == 1 for line in lines) / 3}
    assert stages["scores"]["after"]["flip"] == stages["mean"]["after"]["flip"]
    assert stages["final_scores"]["after"] == stages["healed"]["after"]
    page = (whole / "report.html").read_text()
    assert "<td>evaluate</td>" in page.replace(' class="left"', "")
    assert "The model of stage <code>final_scores</code> answers" in page


def test_a_cut_model_is_part_of_the_larger_one_and_its_layers_are_taught_by_those_that_they_were(whole):
    last, cut = (load_file(whole / "models" / name / "model.safetensors") for name in ("last", "cut"))
    config, healed = (files.read_json(whole / name / "config.json") for name in ("models/cut", "student"))
    (layer,) = config["origin_layers"]
    assert healed["origin_layers"] == [layer]
    assert (healed["num_hidden_layers"], healed["origin_num_layers"], healed["intermediate_size"]) == (1, 2, 24)
    name = "self_attn.q_proj.weight"
    assert (cut[f"model.layers.0.{name}"] == last[f"model.layers.{layer}.{name}"]).all()
    stages = {stage["name"]: stage for stage in files.read_json(whole / "summary.json")["stages"]}
    assert stages["cut"]["before"] == stages["last"]["after"]
    assert stages["cut"]["flops_by_account"]["student"] == stages["cut"]["flops"] > 0  # of the calibration rows
    assert stages["healed"]["before"] == stages["cut"]["after"]
    assert stages["cut"]["student"]["parameters"] == sum(weight.numel() for weight in cut.values())
    assert "cut with `rld` out of `last` (1 layers" in (whole / "models" / "cut" / "README.md").read_text()


def test_check_shows_what_a_merge_and_an_evaluation_do(recipe, capsys):
    assert main(["check", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "one (3), two (1)" in out
    assert "task_arithmetic on one" in out
    assert "the held-out rows of flip" in out
    assert "last to 2.51k parameters" in out
    assert "1 layers (influence), 24 feed-forward units" in " ".join(out.split())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.same.weights=[1]", "stages.same.weights: 1 numbers for 2 models"),
        (
            "stages.mean={name: mean, kind: merge, models: [one, two, one], method: slerp}",
            "slerp merges two models, not 3",
        ),
        ("stages.sum.base=null", "stages.sum.method: task_arithmetic adds to a model: set base to it"),
        ("stages.mean.base=one", "stages.mean.base is for method task_arithmetic and for adapters"),
        ("stages.mean.models=[one]", "stages.mean.models: one model alone is merged with nothing"),
        ("stages.mean.weights=[-1, 3]", "stages.mean.weights: those of method linear should be at least 0"),
        ("stages.mean.models=[one, last]", "stages.mean.models.1: stage 'last' has not run by then"),
        ("stages.scores.model=nobody", "there is no model 'nobody'"),
        ("stages.last.student=scores", "stage 'scores' makes no model; name its model, 'mean'"),
        ("skills.flip.held_out=0", "skill 'flip' has no held-out rows"),
        ("stages.mean.steps=3", "steps"),
        ("stages.cut={name: cut, kind: prune, model: last}", "stages.cut cuts nothing: set layers, intermediate_size"),
        ("stages.cut.model=healed", "stages.cut.model: stage 'healed' has not run by then"),
        ("stages.cut.layers=3", "stages.cut: 3 layers cannot be kept: the model has 2"),
        ("stages.cut.intermediate_size=33", "stages.cut: 33 feed-forward units cannot be kept: the model has 32"),
        ("stages.healed.signals.feature.loss.layers=[[1, 0]]", "layer"),
    ],
)
def test_mistakes_in_such_stages_are_named(recipe, capsys, override, message):
    assert main(["check", str(recipe), override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: tiny.model(width=16).save_pretrained(folder),
            "./a and ./b cannot be merged: lm_head",
        ),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (
            lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
            "a PEFT adapter: set base",
        ),
    ],
)
def test_models_that_cannot_be_merged_are_refused_before_the_run(
    recipe, tmp_path, capsys, change: Callable[[Path], None], message
):
    for name in ("a", "b"):
        tiny.model().save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    change(tmp_path / "b")
    (tmp_path / "tasks.py").write_text(COPY_TASKS)
    text = RECIPE.partition("stages:")[0] + "stages: [{name: m, kind: merge, models: [./a, ./b]}]\n"
    (tmp_path / "r.yaml").write_text(text)
    assert main(["check", str(tmp_path / "r.yaml")]) == 2
    assert message in capsys.readouterr().err
