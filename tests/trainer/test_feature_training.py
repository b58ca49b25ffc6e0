"""Every feature loss and layer map in the trainer: adapters, gradient checkpointing, exports, checkpoints."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.errors import TeacherError
from rld.losses.features import AnyFeature
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer

KINDS = [member.model_fields["kind"].default for member in get_args(get_args(AnyFeature)[0])]
LEARNED: dict[str, Any] = {"kind": "cosine", "layers": "learned"}
FEATURES: list[dict[str, Any]] = [
    *({"kind": kind, "layers": "uniform"} for kind in KINDS),
    LEARNED,
    {"kind": "lens", "layers": "learned"},
    {"kind": "relation", "of": "hidden", "layers": "learned"},
    {"kind": "cosine", "layers": {"model.layers.0": "model.layers.1", "model.layers.1.mlp": "model.layers.1"}},
    {"kind": "relation"},
]
each = pytest.mark.parametrize("feature", FEATURES, ids=str)


def trainer(folder: Any, feature: dict[str, Any], lora: bool = False, **changes: Any) -> RLDTrainer:
    torch.manual_seed(0)
    skills = ["first", "second"]
    chosen = {"signals": ["feature"], "feature": feature, "max_steps": 2, "optim": "sgd", **changes}
    return RLDTrainer(
        model=tiny.model(),
        reward_funcs=tiny.letters,
        args=RLDConfig(**tiny.rld_options(folder, **chosen)),
        train_dataset=tiny.rows(128),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if lora else None,
        teachers=[
            Teacher(tiny.model(seed=1, width=48, layers=3), name="wide", tokenizer=tiny.tokenizer(), skills=skills),
            Teacher(tiny.model(seed=2), name="narrow", tokenizer=tiny.tokenizer(), skills=skills),
        ],
        controller=FixedController(feature=1.0),
    )


def trained(made: RLDTrainer) -> torch.Tensor:
    """What is trained of the student itself."""
    named = made.model.named_parameters()
    return torch.cat([p.detach().flatten() for name, p in named if p.requires_grad and "rld_projections" not in name])


@each
def test_it_trains_an_adapter_and_activation_checkpointing_changes_nothing(tmp_path, feature):
    def run(checkpointing: bool) -> RLDTrainer:
        made = trainer(tmp_path, feature, lora=True, activation_checkpointing=checkpointing)
        made.train()
        return made

    before = trained(trainer(tmp_path, feature, lora=True))
    plain, again = run(False), run(True)
    assert (trained(plain) - before).abs().max() > 1e-6
    torch.testing.assert_close(trained(again), trained(plain), rtol=1e-5, atol=1e-8)
    for ours, theirs in zip(again._projections.parameters(), plain._projections.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@each
def test_a_resumed_run_has_what_the_signal_learned_and_the_export_does_not(tmp_path, feature):
    def made(folder: str) -> RLDTrainer:
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
        return trainer(tmp_path / folder, feature, **options)

    whole, again = made("whole"), made("again")
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    again.train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(trained(again), trained(whole), rtol=0, atol=0)
    ours, theirs, fresh = (x._projections.state_dict() for x in (again, whole, made("fresh")))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
        assert not torch.equal(value, fresh[name]), name
    tiny.model().save_pretrained(tmp_path / "plain")
    exported, plain = (load_file(path / "model.safetensors").keys() for path in (checkpoint, tmp_path / "plain"))
    assert exported == plain


@each
def test_half_precision_measures_the_same(tmp_path, feature):
    def first(bf16: bool) -> float:
        made = trainer(tmp_path, feature, bf16=bf16, max_steps=1)
        if bf16:
            for teacher in [slot.model for slot in made.ensemble.slots]:
                teacher.bfloat16()
        torch.manual_seed(0)
        made.train()
        return float(next(entry["loss/feature"] for entry in made.state.log_history if "loss/feature" in entry))

    assert first(bf16=True) == pytest.approx(first(bf16=False), rel=0.1)


def test_losses_that_need_no_projection_create_no_parameters(tmp_path):
    for kind in ("relation", "cka"):
        assert list(trainer(tmp_path, {"kind": kind})._projections.parameters()) == []
    assert {len(logits) for logits in trainer(tmp_path, LEARNED)._projections.mix_logits} == {2}


def test_checkpointing_that_cuts_gradients_off_is_refused(tmp_path):
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(TeacherError, match="use_reentrant"):
        trainer(tmp_path, {"kind": "relation"}, **options).train()
