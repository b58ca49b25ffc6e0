"""Adapters among the models that a stage merges, against PEFT's own merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rld.cli import main
from rld.utils import files
from tests.support import tiny

HEAD = """
name: small
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}], held_out: 3}
stages:
"""

TASKS = """
def copy(rng, *, length):
    word = "".join(rng.choices("abcd", k=length))
    return f"{word}=", word
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base model, a model of its shape, and adapters on the base and on another model."""
    made = tmp_path_factory.mktemp("merge")
    for name, seed in (("base", 1), ("full", 2)):
        tiny.model(seed=seed).save_pretrained(made / name)
        tiny.tokenizer().save_pretrained(made / name)
    for name, seed in (("one", 0), ("two", 1)):
        _save(made / name, tiny.model(seed=1), seed, "base")
    _save(made / "other", tiny.model(seed=1), 2, "elsewhere")
    _save(made / "wide", tiny.model(seed=1, width=16), 3, "base")
    _save(made / "tied", tiny.model(seed=1), 4, "base", ("q_proj", "lm_head"))
    (made / "tasks.py").write_text(TASKS)
    return made


def _save(to: Path, base: Any, seed: int, name: str, modules: tuple[str, ...] = ("q_proj", "up_proj")) -> None:
    torch.manual_seed(seed)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, target_modules=list(modules))
    get_peft_model(base, config).save_pretrained(to)
    content = json.loads((to / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(content | {"base_model_name_or_path": name}))


def peft_merged(folder: Path, adapter: str) -> dict[str, Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / adapter)
    return dict(model.merge_and_unload().state_dict())


STAGES = """
  - {name: alone, kind: merge, models: [./one], base: ./base}
  - {name: added, kind: merge, models: [./one], base: ./base, method: task_arithmetic}
  - {name: mean, kind: merge, models: [./one, ./full, ./two], base: ./base, weights: [1, 2, 1]}
  - {name: sum, kind: merge, models: [./one, ./two], base: ./base, method: task_arithmetic, weights: [1, -0.5]}
  - {name: turned, kind: merge, models: [./one, ./two], base: ./base, method: slerp, weights: [1, 0]}
"""


def written(folder: Path, stages: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(HEAD + stages)
    return path


def test_adapters_are_merged_as_models_with_the_adapter_in_their_weights(folder, tmp_path):
    """One with weight 1 is what PEFT makes of it."""
    assert main(["train", str(written(folder, STAGES)), "--output", str(tmp_path)]) == 0
    names = {name: tmp_path / "models" / name for name in ("alone", "added", "mean", "sum")}
    results = {name: load_file(path / "model.safetensors") for name, path in names.items()}
    results["turned"] = load_file(tmp_path / "student" / "model.safetensors")
    one, two = peft_merged(folder, "one"), peft_merged(folder, "two")
    base, full = (load_file(folder / name / "model.safetensors") for name in ("base", "full"))
    for name in base:
        for result in ("alone", "added", "turned"):
            assert torch.equal(results[result][name], one[name])
        torch.testing.assert_close(results["mean"][name], 0.25 * one[name] + 0.5 * full[name] + 0.25 * two[name])
        torch.testing.assert_close(results["sum"][name], one[name] - 0.5 * (two[name] - base[name]))
    records = {stage["name"]: stage for stage in files.read_json(tmp_path / "summary.json")["stages"]}
    assert set(records["mean"]["merged"]) == {"./base", "./one", "./full", "./two"}


def test_a_base_may_be_named_by_its_folder_in_several_ways(folder):
    _save(folder / "relative", tiny.model(seed=1), 5, "./base")
    _save(folder / "absolute", tiny.model(seed=1), 6, str(folder / "base"))
    stage = "\n  - {name: m, kind: merge, models: [./relative, ./absolute, ./one], base: ./base}\n"
    assert main(["check", str(written(folder, stage))]) == 0


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("models: [./one, ./two]", "stages.m.models.0: ./one is a PEFT adapter: set base to its model"),
        (
            "models: [./one, ./other], base: ./base",
            "./other is an adapter of elsewhere, and ./one one of base; one",
        ),
        (
            "models: [./wide], base: ./base",
            "the adapter ./wide cannot be merged into ./base: it is an adapter",
        ),
        ("models: [./tied], base: ./base", "the adapter changes the model's output head"),
        ("models: [./full, ./base], base: ./one", "stages.m.base: ./one: it is a PEFT adapter; give the model that it"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_by_name(folder, capsys, stage, message):
    assert main(["check", str(written(folder, f"  - {{name: m, kind: merge, {stage}}}\n"))]) == 2
    assert message in capsys.readouterr().err
