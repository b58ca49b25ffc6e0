"""The corners at which `RLDTrainer` must be another trainer exactly."""

from __future__ import annotations

import pytest
import torch
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer


def _losses(trainer):
    trainer.train()
    return [
        (entry["loss"], entry["grad_norm"], entry.get("reward"))
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("taught", [False, True], ids=["no teacher", "teachers at weight 0"])
def test_without_weight_on_teachers_it_is_grpo(tmp_path, chat, taught):
    def run(trainer_class, config_class, **more):
        args = config_class(**tiny.options(tmp_path, num_iterations=2))
        return _losses(
            trainer_class(
                model=tiny.model().double(),  # shared rows add in another order
                reward_funcs=tiny.letters,
                args=args,
                train_dataset=tiny.rows(chat=chat),
                processing_class=tiny.tokenizer(),
                **more,
            )
        )

    more = {}
    if taught:
        more["teachers"] = [Teacher(tiny.model(seed=1), name="one", tokenizer=tiny.tokenizer())]
        more["controller"] = FixedController(policy=1.0, response=0.0, feature=0.0, decide_every=1)
    ours, theirs = run(RLDTrainer, RLDConfig, **more), run(GRPOTrainer, GRPOConfig)
    assert len(ours) == 5
    assert any(loss != 0 for loss, _, _ in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert a[:2] == pytest.approx(b[:2], rel=1e-5, abs=1e-6)
        assert a[2] == b[2]


def _batch(rows: int = 6, prompt: int = 4, tokens: int = 5):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 15, (rows, prompt + tokens), generator=generator)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, 3:] = 0
    mask[4, 1:] = 0
    prompt_mask = torch.ones(rows, prompt, dtype=torch.long)
    prompt_mask[2, :2] = 0
    return {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, prompt:],
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
    }


@pytest.mark.parametrize(
    ("beta", "divergence"), [(0.0, "forward_kl"), (0.5, {"kind": "jsd", "beta": 0.5}), (1.0, "reverse_kl")]
)
def test_one_teacher_and_response_alone_is_trls_distillation(tmp_path, beta, divergence):
    teacher, batch = tiny.model(seed=1, width=48, layers=3), _batch()
    theirs = DistillationTrainer(
        model=tiny.model(),
        teacher_model=tiny.model(seed=1, width=48, layers=3),
        args=DistillationConfig(
            **{k: v for k, v in tiny.options(tmp_path, beta=beta).items() if k != "num_generations"}
        ),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
    )
    theirs.model.train()
    reference = theirs.compute_loss(theirs.model, dict(batch), num_items_in_batch=batch["num_items_in_batch"])
    reference.backward()

    ours = RLDTrainer(
        model=tiny.model(),
        args=RLDConfig(**tiny.rld_options(tmp_path, divergence=divergence)),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(teacher, name="teacher", tokenizer=tiny.tokenizer())],
        controller=FixedController(policy=0.0, response=1.0),
    )
    ours.model.train()
    ours.current_gradient_accumulation_steps = 1
    inputs = batch | {"advantages": torch.zeros(6), "skill_ids": torch.zeros(6, dtype=torch.long)}
    inputs["signal_weights"] = ours.runtime.signals_SG[inputs["skill_ids"]]
    record = ours._begin_rollout([{"prompt": "ab=", "skill": ours.skills[0]}] * 6)
    record.rewards_AR = torch.zeros(6, 1)
    ours._teacher_scoring.score(inputs, record, step=0)
    loss = ours._compute_loss(ours.model, inputs)
    loss.backward()

    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert loss.item() > 0.1
    expected = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-5, atol=2e-6)
