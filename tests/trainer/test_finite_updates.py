"""Numbers that are not finite stop a run before they reach weights or a complete checkpoint, and the cause is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import tests.support.tiny as tiny
from rld.cli import main
from rld.controllers.baselines import FixedController
from rld.errors import NonFiniteError
from rld.losses import response
from rld.models.tokenizers import character_tokenizer
from rld.teachers.teacher import Teacher
from rld.trainer import checkpoints
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.runs import COPY_TASKS

NAN = float("nan")


def trainer(folder: Any, **options: Any) -> RLDTrainer:
    return RLDTrainer(
        tiny.model(),
        tiny.letters,
        args=RLDConfig(**tiny.options(folder, max_steps=4, save_strategy="steps", save_steps=1, gate="off") | options),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(tiny.model(seed=1), "fine", tokenizer=tiny.tokenizer())],
        controller=FixedController(feature=0.5),
    )


class Spoil(TrainerCallback):
    """Puts a value into a gradient, or a weight, of the third update."""

    def __init__(self, value: float, of_weight: bool = False) -> None:
        self.value, self.of_weight = value, of_weight

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 2 and not self.of_weight:
            weight = model.model.norm.weight
            handle = weight.register_hook(lambda gradient: (handle.remove(), gradient * self.value)[1])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 2 and self.of_weight:
            model.model.norm.weight.data[0] = self.value


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*") if (path / checkpoints.STATE).is_file())


@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 0.0}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run_before_its_update(value, changes, tmp_path):
    made = trainer(tmp_path, **changes)
    made.add_callback(Spoil(value))
    with pytest.raises(NonFiniteError, match=r"update 3: the gradient's norm is (nan|inf); lower the learning rate"):
        made.train()
    assert all(weight.isfinite().all() for weight in made.model.parameters())
    assert stored(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_weight_that_is_not_finite_is_in_no_checkpoint(tmp_path):
    made = trainer(tmp_path)
    made.add_callback(Spoil(NAN, of_weight=True))
    with pytest.raises(NonFiniteError, match=r"after update 3 the student's weight model.norm.weight is not finite"):
        made.train()
    assert stored(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_the_term_of_a_loss_that_is_not_finite_is_named(tmp_path, monkeypatch):
    compute = response.ResponseLoss.compute

    def spoilt(self: Any, *args: Any) -> Any:
        terms = compute(self, *args)
        return terms._replace(
            loss=terms.loss * NAN,
            target_divergence_BT=terms.target_divergence_BT * NAN,
            teacher_divergence_BKT=terms.teacher_divergence_BKT * NAN,
        )

    monkeypatch.setattr(response.ResponseLoss, "compute", spoilt)
    told = r"update 1: the loss is nan .of its terms loss/response, divergence/fine.; lower the learning rate"
    with pytest.raises(NonFiniteError, match=told):
        trainer(tmp_path).train()
    assert stored(tmp_path) == []


def test_logged_losses_do_not_depend_on_how_the_tokens_of_an_update_are_split(tmp_path):
    def logged(parts: int) -> dict[str, float]:
        made = trainer(
            tmp_path / str(parts),
            signals=["policy", "response", "feature"],
            max_steps=1,
            per_device_train_batch_size=8 // parts,
            gradient_accumulation_steps=parts,
            generation_batch_size=8,
        )
        made.train()
        entry = next(entry for entry in made.state.log_history if "loss/response" in entry)
        return {name: entry[name] for name in ("loss/response", "loss/feature", "loss/policy", "divergence/fine")}

    whole = logged(1)
    assert whole["loss/response"] == pytest.approx(whole["divergence/fine"], rel=1e-5)  # one teacher, at every token
    for parts in (2, 4, 8):
        assert logged(parts) == pytest.approx(whole, rel=1e-5, abs=1e-6)


# -- fine-tuning -------------------------------------------------------------------------------------------------------

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 3}], held_out: 4}
models:
  tiny: MODEL
rewards: [{use: answers:exact_match}]
stages:
  - {name: tuned, kind: sft, student: tiny, steps: 4, batch: 8, checkpoint_every: 1, trainer: {learning_rate: 1e-2}}
"""
NEW = (
    "{new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    "num_key_value_heads: 2}}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "tasks.py").write_text(COPY_TASKS)
    (folder / "new.yaml").write_text(RECIPE.replace("MODEL", NEW))
    (folder / "broken.yaml").write_text(
        RECIPE.replace("MODEL", "./broken").replace('tokenizer: {characters: "abcd:="}', "")
    )
    model = tiny.model(vocabulary=9)
    model.model.norm.weight.data[0] = NAN
    model.save_pretrained(folder / "broken")
    character_tokenizer("abcd:=").save_pretrained(folder / "broken")
    return folder


def test_fine_tuning_with_a_rate_that_breaks_the_model_ends_with_an_error(folder, tmp_path, capsys):
    recipe, run = str(folder / "new.yaml"), tmp_path / "run"
    assert main(["train", recipe, "stages.tuned.trainer.learning_rate=1e10", "--output", str(run)]) == 2
    told = capsys.readouterr().err
    assert "stage 'tuned', update " in told
    assert "lower the learning rate" in told
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line.get("loss", 1.0) != 0.0 for line in lines)
    assert not (run / "student").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "failed"


def test_fine_tuning_a_broken_model_ends_with_an_error_that_names_the_weight(folder, tmp_path, capsys):
    assert main(["train", str(folder / "broken.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert "its weight model.norm.weight is not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "student").exists()
