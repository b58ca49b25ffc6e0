"""Numbers that are not finite stop a run before they reach weights or a complete checkpoint, and the cause is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

import tests.support.tiny as tiny
from rld.cli import main
from rld.controllers.baselines import FixedController
from rld.errors import DivergedError
from rld.losses import response
from rld.models.tokenizers import character_tokenizer
from rld.teachers.teacher import Teacher
from rld.trainer import checkpoints, finite_updates
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.processes import (
    exit_codes,
    free_port,
    rank_environment,
    sharing_environment,
    started,
    train_quietly,
)
from tests.support.runs import COPY_TASKS, written

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
    """Puts a value into a gradient of the third update and of `num_more` after it, or into a weight at the third."""

    def __init__(self, value: float, of_weight: bool = False, num_more: int = 2) -> None:
        self.value, self.of_weight, self.steps = value, of_weight, range(2, 3 + num_more)
        self.weights: list[list[Tensor]] = []
        """The weights before each update."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights.append([weight.detach().clone() for weight in model.parameters()])
        if state.global_step in self.steps and not self.of_weight:
            weight = model.model.norm.weight
            handle = weight.register_hook(lambda gradient: (handle.remove(), gradient * self.value)[1])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 2 and self.of_weight:
            model.model.norm.weight.data[0] = self.value


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*") if (path / checkpoints.STATE).is_file())


@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 0.0}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_the_third_gradient_in_a_row_that_is_not_finite_stops_the_run_and_stores_its_batch(value, changes, tmp_path):
    made = trainer(tmp_path, max_steps=6, save_total_limit=2, **changes)
    made.add_callback(Spoil(value))
    message = r"update 5: the gradient's norm is (nan|inf); lower .*; 3 updates in a row were skipped; its rows are in "
    with pytest.raises(DivergedError, match=message) as stopped:
        made.train()
    assert all(weight.isfinite().all() for weight in made.model.parameters())
    assert stored(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    assert f"{tmp_path}/skipped-5-0.jsonl" in str(stopped.value)
    rows = [json.loads(line) for line in (tmp_path / "skipped-5-0.jsonl").read_text().splitlines()]
    tensors = load_file(tmp_path / "skipped-5-0.safetensors")
    num_parts = changes.get("gradient_accumulation_steps", 1)
    assert {row["micro_batch"] for row in rows} == set(range(num_parts))
    assert len(rows) == sum(len(tensors[f"{i}/completion_ids"]) for i in range(num_parts)) == 8 * num_parts
    assert rows[0]["prompt"] and rows[0]["not_finite"] == []


@pytest.mark.parametrize("signals", [["policy"], ["policy", "response", "feature"]])
def test_a_skipped_update_changes_nothing_and_training_goes_on(signals, tmp_path, capsys):
    made, spoil = trainer(tmp_path, max_steps=5, signals=signals), Spoil(NAN, num_more=1)
    made.add_callback(spoil)
    made.train()
    assert made.state.global_step == 5
    third, fourth, fifth = spoil.weights[2:5]
    for before, after in ((third, fourth), (fourth, fifth)):
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    weights = [weight.detach() for weight in made.model.parameters()]
    assert all(weight.isfinite().all() for weight in weights)
    assert any(not torch.equal(x, y) for x, y in zip(fifth, weights, strict=True))
    assert capsys.readouterr().err.count("this update is skipped") == 2
    skipped = [(event.step, event.measured) for event in made.events if event.kind == "update skipped"]
    assert skipped == [(i + 2, f"the gradient's norm is nan; {i} in a row") for i in (1, 2)]
    again = trainer(tmp_path, max_steps=5, signals=signals)
    again.add_callback(Spoil(NAN))
    with pytest.raises(DivergedError, match=r"update 5: .*; 3 updates in a row were skipped"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(math.isfinite(entry["loss"]) for entry in made.state.log_history if "loss" in entry)


def test_a_loss_that_is_not_finite_for_one_update_is_skipped_and_leaves_no_trace(tmp_path, monkeypatch):
    compute, num_calls = response.ResponseLoss.compute, []

    def spoilt(self: Any, *args: Any) -> Any:
        terms = compute(self, *args)
        num_calls.append(1)
        factor = NAN if len(num_calls) == 2 else 1.0
        values = {name: getattr(terms, name) for name in ("loss", "target_divergence_BT", "teacher_divergence_BKT")}
        return terms._replace(**{name: value * factor for name, value in values.items()})

    monkeypatch.setattr(response.ResponseLoss, "compute", spoilt)
    made = trainer(tmp_path)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert [math.isfinite(loss) for loss in losses] == [True, False, True, True]
    assert all(weight.isfinite().all() for weight in made.model.parameters())
    assert "NaN" not in (tmp_path / "checkpoint-4" / checkpoints.STATE).read_text()


def test_a_divergence_that_overflows_is_not_measured_in_an_update_that_is_made(tmp_path, monkeypatch):
    compute, num_calls = response.ResponseLoss.compute, []

    def spoilt(self: Any, *args: Any) -> Any:
        terms = compute(self, *args)
        num_calls.append(1)
        factor = math.inf if len(num_calls) == 2 else 1.0
        return terms._replace(teacher_divergence_BKT=terms.teacher_divergence_BKT * factor)

    monkeypatch.setattr(response.ResponseLoss, "compute", spoilt)
    made, seen = trainer(tmp_path), []
    finish = made.runtime.finish_update
    monkeypatch.setattr(made.runtime, "finish_update", lambda *args: (seen.append(args[0]), finish(*args))[1])
    with pytest.warns(UserWarning, match="measurements that are not finite are kept from the controller"):
        made.train()
    assert not [event for event in made.events if event.kind == "update skipped"]
    assert all(statistics.is_finite() for statistics in seen)
    assert [bool(statistics.divergence_tokens_SK.sum()) for statistics in seen] == [True, False, True, True]
    assert all(statistics.tokens_S.sum() for statistics in seen)


def test_a_weight_that_is_not_finite_is_in_no_checkpoint(tmp_path):
    made = trainer(tmp_path)
    made.add_callback(Spoil(NAN, of_weight=True))
    with pytest.raises(DivergedError, match=r"after update 3 the student's weight model.norm.weight is not finite"):
        made.train()
    assert stored(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_process_stops_where_another_one_has_a_weight_that_is_not_finite(tmp_path, monkeypatch):
    made = trainer(tmp_path)
    monkeypatch.setattr(type(made.accelerator), "num_processes", 2)
    monkeypatch.setattr(made.accelerator, "reduce", lambda value, reduction: value + NAN)
    with pytest.raises(DivergedError, match="after update 3 a part of a weight on another process is not finite"):
        finite_updates.require_finite_weights(made.model, "after update 3", made.accelerator)
    monkeypatch.setattr(finite_updates, "save_batch", lambda *_: None)
    with pytest.raises(DivergedError, match="update 1: the loss is nan"):  # though it is the first one to be skipped
        made._skip("the loss is nan")


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
    message = r"update 3: the loss is nan .of its terms loss/response, divergence/fine.; lower the learning rate"
    with pytest.raises(DivergedError, match=message):
        trainer(tmp_path).train()
    assert stored(tmp_path) == ["checkpoint-1", "checkpoint-2"]


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
    assert main(["train", recipe, "stages.tuned.trainer.learning_rate=1e10", "--output", str(run)]) == 3
    output = capsys.readouterr().err
    assert "this update is skipped" in output
    assert "stage 'tuned', after its last update" in output
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(line.get("loss", 1.0) != 0.0 for line in lines)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert "update skipped" in {event["kind"] for event in events}
    assert not (run / "student").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "failed"


def test_fine_tuning_a_broken_model_ends_with_an_error_that_names_the_weight(folder, tmp_path, capsys):
    assert main(["train", str(folder / "broken.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert "its weight model.norm.weight is not finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "student").exists()


# -- two processes -----------------------------------------------------------------------------------------------------

TWO = """
name: two
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 3}], held_out: 4}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
stages:
  - name: student
    kind: distill
    student: tiny
    teachers: {other: {model: tiny, probe_prompts: 2}}
    gate: "off"
    signals: {response: {}}
    rollout: {prompts: 2, completions: 2}
    steps: 9
    checkpoint_every: 1
"""


def train_spoilt(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """Train in a process whose part of the loss is NaN, if it is the second one, in updates 2 and 4 to 6."""
    compute, num_calls = response.ResponseLoss.compute, []

    def spoilt(self: Any, *args: Any) -> Any:
        terms = compute(self, *args)
        num_calls.append(1)
        return terms._replace(loss=terms.loss * NAN) if len(num_calls) in (2, 4, 5, 6) else terms

    if environment["RANK"] == "1":
        response.ResponseLoss.compute = spoilt  # type: ignore[method-assign]
    train_quietly(arguments, log, environment)


@pytest.mark.parametrize("way", ["cpu", "fsdp2"])
def test_both_processes_skip_and_stop_when_the_batch_of_one_is_not_finite(tmp_path, way):
    arguments = [str(written(tmp_path, TWO)), "--output", str(tmp_path / "run")]
    shared, port, logs = sharing_environment(f"accelerate/{way}"), free_port(), [tmp_path / "0", tmp_path / "1"]
    processes = started(
        train_spoilt, [(arguments, log, shared | rank_environment(rank, 2, port)) for rank, log in enumerate(logs)]
    )
    assert exit_codes(processes, 240.0) == [3, 3], logs[0].read_text()
    checkpoints_of = tmp_path / "run" / "checkpoints" / "student"
    assert stored(checkpoints_of) == ["checkpoint-4", "checkpoint-5"]
    fourth, fifth = (load_file(checkpoints_of / f"checkpoint-{step}" / "model.safetensors") for step in (4, 5))
    assert all(torch.equal(fourth[key], fifth[key]) for key in fourth)
    assert logs[0].read_text().count("this update is skipped") == 3
    for rank, problem in enumerate(("the loss of another process is not finite", "the loss is nan")):
        told = logs[rank].read_text()
        assert f"update 6: {problem}" in told
        assert f"3 updates in a row were skipped; its rows are in {checkpoints_of}/skipped-6-*.jsonl" in told
        assert (checkpoints_of / f"skipped-6-{rank}.jsonl").is_file()
        assert (checkpoints_of / f"skipped-6-{rank}.safetensors").is_file()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "update skipped"] == [2, 4, 5]
