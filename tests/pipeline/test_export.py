"""The stage `export` and the command `rld export`."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from pathlib import Path

import pytest

from rld.cli import main
from rld.models.export import onnx
from rld.utils import files
from tests.support.runs import recipe, whole

__all__ = ["recipe", "whole"]

for _package in ("gguf", "xllamacpp", "onnxruntime_genai", "onnxscript"):
    pytest.importorskip(_package, reason="install the extra `export`")

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 4}
models:
  tiny: {new: llama, config: {hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 4}}
stages:
  - {name: learn, kind: sft, student: tiny, steps: 2, batch: 8}
  - {name: phone, kind: export, model: learn, format: onnx, max_rows: 3}
"""


def test_a_stage_exports_verifies_measures_and_scores_a_model(recipe, whole):
    result = whole / "exports" / "phone"
    assert {"model.onnx", "genai_config.json", "tokenizer.json", "rld_stage.json"} <= {p.name for p in result.iterdir()}
    _, phone = files.read_json(whole / "summary.json")["stages"]
    assert phone["export"]["agreement"] == 1.0
    assert phone["export"]["texts"] == "held-out rows and a page of prose and code"
    assert phone["before"] == phone["after"]  # in float32 it gives the same answers
    said = {
        scoring: [line["answer"] for line in files.read_jsonl(path).records]
        for scoring in ("before", "after")
        if (path := whole / "predictions" / "phone" / f"{scoring}.jsonl")
    }
    assert said["before"] == said["after"] and len(said["after"]) == 3
    assert "perplexity" in (whole / "report.html").read_text()
    assert main(["train", str(recipe), "--output", str(whole), "--resume"]) == 0


def test_the_command_finds_the_recipe_of_the_run_and_leaves_no_half_of_an_export(
    recipe, whole, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = ["export", str(whole / "student"), "--to", "onnx", "--precision", "int4"]
    assert main(command) == 0
    assert "same likeliest token" in (shown := capsys.readouterr().out)
    assert "the model: held-out rows" in shown and "its export: held-out rows" in shown
    content = files.read_json(Path("exports/run-onnx-int4/rld_export.json"))
    assert content["scorings"].keys() == {"the model", "its export"}
    assert main(command) == 2
    assert "exports/run-onnx-int4 exists" in capsys.readouterr().err
    write = onnx.write
    monkeypatch.setattr(onnx, "write", lambda model, *rest: write(copy.deepcopy(model).apply(_spoil), *rest))
    moved = shutil.copytree(whole, tmp_path / "moved")
    summary = files.read_json(moved / "summary.json")
    assert summary["recipe_file"] == str(recipe)
    files.write_json(moved / "summary.json", summary | {"recipe_file": str(tmp_path / "gone" / "small.yaml")})
    assert main(["export", "moved/student", "--to", "onnx", "--output", "other"]) == 2
    message = capsys.readouterr().err
    assert f"the folder of its recipe, {tmp_path / 'gone'}, is gone" in message
    assert "no file ./tasks.py" in message and "add --recipe to verify and score it on held-out rows" in message
    assert "the exported model is not the model" in message
    assert not list(Path().glob("other*"))


def _spoil(module):
    if hasattr(module, "weight"):
        module.weight.data.mul_(1.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.phone.format=gguf tokenizer.characters=abcdä:=",
            "stages.phone.format: cannot export to GGUF: llama.cpp",
        ),
        ("stages.phone.precision=q8_0", "stages.phone.precision: onnx has f32, int8, int4, not 'q8_0'"),
        ("stages.phone.format=ggml", "stages.phone.format: there is no format 'ggml'; choose from gguf, onnx"),
        ("stages.phone.model=nobody", "there is no model 'nobody'"),
    ],
)
def test_mistakes_in_an_export_are_named_before_anything_trains(recipe, capsys, override, message):
    assert main(["check", str(recipe), *override.split(" ")]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_told_in_one_line(recipe, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find_spec(name, *rest)
    )
    for command in (["check", str(recipe)], ["export", str(recipe.parent), "--to", "onnx"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.strip().split("\n")
        assert "it needs the package onnx; install it with: pip install -e '.[export]'" in line
