"""The recipes for each kind of data run from start to end, and their data are what the script beside them makes."""

from __future__ import annotations

import importlib.util
import json

import pytest

from rld.cli import main
from rld.errors import RewardError
from rld.pipeline.recipe_check import check_recipe
from rld.recipe.cost import stage_costs
from rld.recipe.reading import read_recipe
from rld.recipe.registry import files, folder
from rld.utils import sandbox

FOLDER = folder("recipes")
NAMES = ("gsm8k", "chat", "summaries", "code", "ag_news_labels")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_for_a_kind_of_data_trains_for_a_few_steps(name, tmp_path):
    if name == "code":
        try:
            sandbox.require_sandbox()
        except RewardError as error:
            pytest.skip(f"no sandbox here: {error}")
    recipe = read_recipe(files("recipes")[name])
    (skill,) = recipe.skills
    shorter = [f"stages.{stage.name}.steps=2" for stage in recipe.stages]
    if name != "ag_news_labels":
        shorter += ["stages.distill.rollout={prompts: 2, completions: 2, gold_completions: 1}"]
    shorter += [] if name in ("chat", "ag_news_labels") else [f"skills.{skill}.held_out=8"]
    assert main(["train", name, *shorter, "--output", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "loss/response" in lines[-1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    if all(stage.kind in ("sft", "distill") for stage in recipe.stages):
        assert planned_flops(files("recipes")[name], shorter) == pytest.approx(summary["flops"], rel=0.25)


def planned_flops(path, overrides):
    """The FLOPs that `rld check` prints."""
    recipe = read_recipe(path, overrides)
    rows = {skill.skill: skill.lengths for skill in check_recipe(recipe, path).skills}
    return sum(cost.flops for cost in stage_costs(recipe, path.parent, rows).values())


def test_a_copy_has_the_data_and_the_tokenizer(tmp_path, capsys):
    assert main(["copy", "chat", str(tmp_path)]) == 0
    assert (tmp_path / "data" / "talks_held_out.jsonl").is_file()
    assert main(["check", str(tmp_path / "chat.yaml")]) == 0
    assert "<|tools|>" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["qwen3_06b", "qwen3_06b_lora", "qwen3_17b_fsdp"])
def test_a_recipe_for_gpus_is_copied_and_valid_without_its_models(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no models"))
    assert main(["copy", f"gpu/{name}", str(tmp_path)]) == 0
    assert main(["check", str(tmp_path / f"{name}.yaml"), "--card", "8xH100"]) == 0
    shown = capsys.readouterr().out
    assert "not on this machine, and checked when `rld train` has them: Qwen/Qwen3-" in shown
    assert "(not run)" in (tmp_path / f"{name}.yaml").read_text().partition("\n")[0]


def test_the_script_makes_the_data(tmp_path):
    spec = importlib.util.spec_from_file_location("make", FOLDER / "data" / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(tmp_path)
    for path in sorted([*(FOLDER / "data").glob("*.jsonl"), *(FOLDER / "data").glob("*.csv")]):
        if (tmp_path / path.name).exists():
            assert path.read_text() == (tmp_path / path.name).read_text(), path.name
