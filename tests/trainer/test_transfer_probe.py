"""The agreement of gradients is that of plain autograd, and the prompts of a run with a target follow it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rld.curricula.fixed import Uniform

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.controllers.target import TargetedController
from rld.errors import RecipeError
from rld.teachers.teacher import Teacher
from rld.trainer.joint_loss import JointLoss
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.trainer.transfer_probe import TransferProbe
from rld.types import Row
from rld.utils.flops import training_flops


def gold(num: int = 48) -> list[Row]:
    return [dict(row) for row in tiny.rows(num)]


def trainer(
    folder: Any, rows: Any = None, target_rows: Any = None, target: str = "first", **changes: Any
) -> RLDTrainer:
    return RLDTrainer(
        model=tiny.model(),
        reward_funcs=[tiny.letters],
        args=RLDConfig(**tiny.rld_options(folder, max_steps=4, **changes)),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(tiny.model(1), "big", tokenizer=tiny.tokenizer())],
        curriculum=Uniform({"first": 1, "second": 1}),
        controller=TargetedController(FixedController(policy=0.5, response=0.5, decide_every=2), (target,)),
        gold_rows=gold() if rows is None else rows,
        target_rows=gold(80)[48:] if target_rows is None else target_rows,
    )


def plain(model: Any, rows: list[Row]) -> torch.Tensor:
    """The gradient of the mean negative log-likelihood of answers and ends, one row at a time, in float64."""
    tokenizer, model = tiny.tokenizer(), model.double()
    total, number = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["answer"])["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answer])
        log_p = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total = total - log_p.gather(1, torch.tensor(answer)[:, None]).sum()
        number += len(answer)
    gradients = torch.autograd.grad(total / number, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_cosines_are_those_of_plain_gradients(tmp_path):
    made = trainer(tmp_path)
    made.runtime.updates = 1  # the update before a tick
    cosines, num_tokens = made._transfer.take()
    target = plain(tiny.model(), [row for row in gold(80)[48:] if row["skill"] == "first"])
    for skill in ("first", "second"):
        own = plain(tiny.model(), [row for row in gold() if row["skill"] == skill][:16])
        expected = float(own @ target / (own.norm() * target.norm()))
        assert cosines[skill] == pytest.approx(expected, abs=1e-5)
    assert num_tokens == (16 + 16 + 16) * 6  # two letters, =, two letters, the end
    made.runtime.updates = 0
    assert made._transfer.take() == ({}, 0)


def test_a_measurement_changes_neither_the_gradients_at_hand_nor_the_mode(tmp_path):
    made = trainer(tmp_path)
    made.runtime.updates = 1
    made.model.train()
    for weight in made.model.parameters():
        weight.grad = torch.ones_like(weight)
    made._transfer.take()
    assert made.model.training
    assert all(bool((weight.grad == 1).all()) for weight in made.model.parameters())


def test_shares_are_logged_and_the_tokens_count(tmp_path):
    made, padding, count = trainer(tmp_path), list[int](), JointLoss.count
    made._joint_loss.count = lambda *args: padding.append(args[-1]) or count(made._joint_loss, *args)
    made.train()
    shares = made.runtime.weights.allocation
    assert shares is not None and shares["first"] > shares["second"]
    last = next(line for line in reversed(made.state.log_history) if "transfer/first" in line)
    assert last["transfer/first"] > last["transfer/second"]
    assert last["share/first"] != 0.5
    assert sum(padding) > 0  # is computed, and no token that the student reads
    trained = made.totals.tokens_trained + sum(padding) + 2 * made._transfer.num_tokens
    assert made.flop_meter.accounts["student"] == training_flops(made._num_parameters, trained)


def test_every_process_pays_for_its_measurement(tmp_path, monkeypatch):
    made = trainer(tmp_path)
    made.runtime.updates = 1
    _, num_tokens = made._transfer.take()
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    two = TransferProbe.for_trainer(made, made._encoder, gold_rows=gold(), target_rows=gold(80)[48:])
    assert two is not None and two.take()[1] == 2 * num_tokens


def test_gold_answers_that_the_student_cannot_write_are_left_out(tmp_path):
    rows = gold()
    rows[0]["answer"] = "abcdefghij"
    with pytest.warns(UserWarning, match="without 1 that the student cannot write"):
        made = trainer(tmp_path, rows=rows)
    texts = made._transfer.texts[rows[0]["skill"]]
    assert len(texts) == 16 and max(len(answer) for _, answer in texts) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "third"}, "no row of target_rows has skill 'third'"),
        ({"target_rows": []}, "no row of target_rows has skill 'first'"),
        ({"rows": [row for row in gold() if row["skill"] == "first"]}, "no row of gold_rows has skill 'second'"),
    ],
)
def test_a_target_that_cannot_be_measured_is_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        trainer(tmp_path, **changes)
