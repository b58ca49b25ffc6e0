"""The page that shows one update in plain torch computes what the trainer computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer

PAGE = Path(__file__).parent.parent / "docs" / "walkthrough.md"


def test_the_walkthrough_is_the_update(tmp_path):
    page: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, page)

    trainer = RLDTrainer(
        model=tiny.model(),
        reward_funcs=tiny.letters,
        args=RLDConfig(
            **tiny.rld_options(tmp_path, divergence="forward_kl", feature="cosine", teacher_reward=0.3),
            signals=["policy", "response", "feature"],
        ),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[
            Teacher(tiny.model(seed=1, width=48, layers=3), name="one", tokenizer=tiny.tokenizer()),
            Teacher(tiny.model(seed=2), name="two", tokenizer=tiny.tokenizer()),
        ],
        controller=FixedController(policy=0.5, response=0.3, feature=0.2, teachers={"one": 3.0, "two": 1.0}),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([trainer.train_dataset[i // 4] for i in range(8)])
    inputs["completion_mask"][1, 2:] = 0
    inputs["num_items_in_batch"] = inputs["num_taught"] = inputs["completion_mask"].sum()
    trainer.model.zero_grad()
    ours = trainer._compute_loss(trainer.model, inputs)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

    trainer.model.zero_grad()
    projections = [maps[0] for maps in trainer.model.rld_projections.maps]
    rollout = {
        "ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
        "attention": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        "mask": inputs["completion_mask"],
        "advantages": inputs["advantages"],
    }
    policy, response, feature = inputs["signal_weights"].unbind(1)
    weights = {"policy": policy, "response": response, "feature": feature, "teachers": inputs["teacher_weights"]}
    teachers = [slot.model for slot in trainer.ensemble.slots]
    theirs = page["loss"](trainer.model, teachers, projections, rollout, weights, 0.3, torch.ones(8))
    theirs.backward()

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
