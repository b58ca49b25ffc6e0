"""The page for users of other libraries: TRL's names are those of the installed TRL, ours are ours, and it trains."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer

import tests.support.tiny as tiny
from rld import RLDConfig, RLDTrainer, Teacher
from rld.recipe.document import RecipeDocument
from rld.recipe.stages.distill import Distill

TEXT = (Path(__file__).parent.parent / "docs" / "migration.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in TEXT.split("\n## ")[1:]}
TRAINERS = {
    "GRPOTrainer": (GRPOTrainer, GRPOConfig),
    "DistillationTrainer": (DistillationTrainer, DistillationConfig),
    "GKDTrainer": (GKDTrainer, GKDConfig),
    "GOLDTrainer": (GOLDTrainer, GOLDConfig),
}
WORDS = {"forward_kl", "reverse_kl", "jsd", "the same"}
"""Values of our options that stand in the tables beside their names."""


def arguments(trainer: type, config: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config)} | set(inspect.signature(trainer.__init__).parameters)


def column(section: str, number: int) -> str:
    rows = [line for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    return "\n".join(row.split(" | ")[number] for row in rows[1:])


@pytest.mark.parametrize("section", TRAINERS)
def test_the_names_of_trl_are_those_of_the_installed_one(section):
    names = set(re.findall(r"`([a-z_]+)`", column(section, 0)))
    assert len(names) >= 8
    assert sorted(names - arguments(*TRAINERS[section])) == []


@pytest.mark.parametrize("section", TRAINERS)
def test_our_names_are_arguments_of_the_trainer_or_the_teacher(section):
    names = set(re.findall(r"`([a-z_]+)`", column(section, 1))) - WORDS
    names |= set(re.findall(r"`Teacher\((\w+)=", column(section, 1)))
    teacher = {field.name for field in dataclasses.fields(Teacher)}
    grpo = arguments(GRPOTrainer, GRPOConfig)
    assert sorted(names - arguments(RLDTrainer, RLDConfig) - teacher - grpo) == []


def test_grpo_keeps_its_defaults():
    """But for what the page on Python names: what is not finite is not left out of the log."""
    ours = {field.name: field.default for field in dataclasses.fields(RLDConfig)}
    changed = {field.name for field in dataclasses.fields(GRPOConfig) if ours[field.name] != field.default}
    assert changed == {"logging_nan_inf_filter"}


def test_its_stages_are_valid(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    for block in blocks:
        (tmp_path / "stage.yaml").write_text(f"name: s\nkind: distill\nsteps: 10\n{block}")
        stage = Distill.model_validate(RecipeDocument(tmp_path / "stage.yaml").tree)
        assert (stage.gate, stage.controller.kind, len(stage.teachers) >= 1) == ("off", "fixed", True)
    assert len(blocks) == 5


@pytest.mark.parametrize("script", re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
def test_its_scripts_train(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(dict.fromkeys(re.findall(r'"(HuggingFaceTB/[^"]+)"', script))):
        folder = tmp_path / name.split("/")[1]
        tiny.model(seed=i).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        script = script.replace(name, f"./{folder.name}")
    for length in ("max_completion_length", "max_new_tokens"):
        script = script.replace(f"{length}=64", f"{length}=4, max_steps=2, use_cpu=True")
    roles = {"user": "prompt", "assistant": "answer"}
    messages = [{"messages": [{"role": r, "content": row[k]} for r, k in roles.items()]} for row in tiny.rows()]
    scope: dict[str, Any] = {"dataset": tiny.rows(), "exact_match": tiny.letters}
    scope["messages"] = Dataset.from_list(messages)
    exec(script, scope)
    assert scope["trainer"].state.global_step == 2
