"""The cross-entropy of gold answers beside the other signals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tests.support.gold_one_and_two as runs
import tests.support.tiny as tiny
from rld.errors import RecipeError
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.trainer.test_processes import launch

WEIGHT = 0.7


def rollout(made: RLDTrainer, num_prompts: int = 8) -> dict[str, Any]:
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made._generate_and_score_completions([made.train_dataset[i] for i in range(num_prompts)])


def reference(model: Any, rows: Any, num_gold_tokens: int) -> Tensor:
    """The mean cross-entropy of gold answers and their ends in float64, each row by itself."""
    tokenizer, total = tiny.tokenizer(), torch.zeros((), dtype=torch.float64)
    for row in rows:
        prompt, answer = tokenizer(row["prompt"])["input_ids"], tokenizer(row["answer"])["input_ids"]
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        log_p_TV = model(ids).logits[0].log_softmax(-1)
        targets = ids[0, len(prompt) :]
        total = total - log_p_TV[len(prompt) - 1 : -1].gather(1, targets[:, None]).sum()
    return total / num_gold_tokens


def test_the_loss_and_its_gradient_are_those_of_the_formula_in_float64(tmp_path):
    made = runs.trainer(tmp_path, gold_weight=WEIGHT, response=0.0)
    made.model.double()
    batch = rollout(made)
    made._compute_loss(made.model, batch).backward()
    gradient = torch.cat([p.grad.flatten() for p in made.model.parameters()])
    plain = tiny.model().double()
    rows = [made.train_dataset[i] for i in range(8)]
    (WEIGHT * reference(plain, rows, int(batch["num_gold"]))).backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_that_of_finite_differences(tmp_path):
    made = runs.trainer(tmp_path, gold_weight=WEIGHT, response=0.4)
    made.model.double()
    batch = rollout(made)
    made._compute_loss(made.model, batch).backward()
    parameters, losses, step = list(made.model.parameters()), [], 1e-2
    direction = [parameter.grad / parameter.grad.norm() for parameter in parameters]
    slope = sum(parameter.grad.norm() for parameter in parameters).item()
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, towards in zip(parameters, direction, strict=True):
                parameter += sign * step * towards
            losses.append(made._compute_loss(made.model, batch).item())
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-2)


def test_only_the_gold_completions_of_a_group_are_learnt(tmp_path):
    options = tiny.rld_options(tmp_path, num_generations=4, gold_completions=1, gold_weight=4 * WEIGHT, max_steps=30)
    made = RLDTrainer(tiny.model(), tiny.letters, RLDConfig(**options), tiny.rows(), processing_class=tiny.tokenizer())
    made.model.train()
    batch = made._generate_and_score_completions([made.train_dataset[i // 4] for i in range(8)])
    assert batch["is_gold"].tolist() == [True, False, False, False] * 2
    assert batch["num_gold"] == batch["completion_mask"].sum()
    made.train()  # without teachers, beside the policy
    losses = [entry["loss/gold"] for entry in made.state.log_history if "loss/gold" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.5}, {"gold_weight": -1.0}],
)
def test_options_with_which_it_cannot_be_computed_are_refused(tmp_path, options):
    valid = {"num_generations": 4, "gold_completions": 1, "gold_weight": WEIGHT}
    with pytest.raises(RecipeError, match="gold_weight"):
        RLDConfig(**tiny.rld_options(tmp_path, **(valid | options)))


def test_accumulation_does_not_change_the_update(tmp_path):
    whole, quarters = (runs.trained(tmp_path / str(parts), num_parts=parts) for parts in (1, 4))
    torch.testing.assert_close(whole, quarters, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(whole, runs.trained(tmp_path / "without", num_parts=1, gold_weight=0.0), atol=1e-4)


def test_one_process_and_two_give_the_same_update(tmp_path):
    launch(tmp_path, 2, module="gold_one_and_two")
    one = runs.trained(tmp_path / "one", num_parts=1)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), one, rtol=1e-4, atol=1e-6)
