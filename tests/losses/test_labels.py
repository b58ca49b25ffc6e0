"""Divergences over labels: against a plain computation, finite differences, and the divergences over a vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rld.losses.combination import AnyCombination
from rld.losses.divergences import AnyDivergence
from rld.losses.labels import label_cross_entropy, label_divergence
from rld.losses.objective import ResponseObjective
from rld.utils.options import kinds_of, parse_option

DIVERGENCES = sorted(kinds_of(AnyDivergence))
COMBINATIONS = sorted(kinds_of(AnyCombination))
WITHOUT_OWN_GRADIENT = {"adaptive_kl", "taid"}
"""Divergences with parts that depend on the student and are detached, so that finite differences differ."""


def objective(divergence: str = "forward_kl", combination: str = "mixture", temperature: float = 1.0) -> Any:
    parsed: Any = parse_option("divergence", AnyDivergence, divergence)
    return ResponseObjective(parsed, parse_option("combination", AnyCombination, combination), temperature)


def scores(*shape: int, seed: int = 0) -> Tensor:
    """Log-probabilities of words, of which no set sums to 1."""
    return -4 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


def softmax(values: list[float], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_forward_kl_from_a_mixture_is_the_sum_of_the_formula(temperature):
    student_PL, teachers_KPL = scores(3, 4), scores(2, 3, 4, seed=1)
    weights_PK = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    result = label_divergence(student_PL, teachers_KPL, weights_PK, objective(temperature=temperature))
    for p in range(3):
        s = softmax(student_PL[p].tolist(), temperature)
        teachers = [softmax(teachers_KPL[k, p].tolist(), temperature) for k in range(2)]
        total = sum(weights_PK[p].tolist())
        target = [
            sum(w * t[i] for w, t in zip(weights_PK[p].tolist(), teachers, strict=True)) / total for i in range(4)
        ]
        expected = total * sum(t * math.log(t / s[i]) for i, t in enumerate(target))
        assert float(result.target_P[p]) == pytest.approx(expected, rel=1e-9)
        for k in range(2):
            each = sum(t * math.log(t / s[i]) for i, t in enumerate(teachers[k]))
            assert float(result.teachers_PK[p, k]) == pytest.approx(each, rel=1e-9)


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_and_combination_is_that_over_a_vocabulary_of_labels(divergence, combination):
    student_PL, teachers_KPL, chosen = scores(5, 3), scores(2, 5, 3, seed=1), objective(divergence, combination)
    weights_PK = torch.rand(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights_PK[0] = torch.tensor([0.0, 1.0])
    weights_PK[1] = 0.0
    result = label_divergence(student_PL, teachers_KPL, weights_PK, chosen)
    log_s_PL, log_p_KPL = student_PL.log_softmax(-1), teachers_KPL.log_softmax(-1)
    if chosen.combination.pools:
        target_PL, weight_P = chosen.combination.target(log_p_KPL, weights_PK)
        expected_P = weight_P * chosen.divergence(log_s_PL, target_PL)
    else:
        expected_P = sum(weights_PK[:, k] * chosen.divergence(log_s_PL, log_p_KPL[k]) for k in range(2))
    torch.testing.assert_close(result.target_P, expected_P)
    assert result.target_P[1] == 0
    same = label_divergence(student_PL, student_PL.expand(2, -1, -1) - 7.0, weights_PK, chosen)
    torch.testing.assert_close(same.target_P, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_teachers", [1, 2])
@pytest.mark.parametrize("divergence", sorted({*DIVERGENCES} - WITHOUT_OWN_GRADIENT))
def test_the_gradient_is_that_of_finite_differences(divergence, num_teachers):
    teachers_KPL, weights_PK = scores(num_teachers, 3, 4, seed=1), torch.full((3, num_teachers), 0.4)

    def total(student_PL: Tensor) -> Tensor:
        return label_divergence(student_PL, teachers_KPL, weights_PK, objective(divergence, "mixture", 2.0)).target_P

    assert torch.autograd.gradcheck(total, scores(3, 4).requires_grad_())


def test_scores_of_hundreds_of_nats_are_no_nan():
    student_PL = torch.tensor([[-900.0, -1.0], [-2000.0, -2000.0]], requires_grad=True)
    teachers_KPL = torch.tensor([[[-1.0, -900.0], [0.0, -3000.0]]])
    result = label_divergence(student_PL, teachers_KPL, torch.ones(2, 1), objective())
    result.target_P.sum().backward()
    assert result.target_P.isfinite().all() and student_PL.grad is not None and student_PL.grad.isfinite().all()
    assert float(result.target_P[0].detach()) == pytest.approx(899.0)


def test_gold_labels_have_a_cross_entropy_and_rows_without_one_do_not():
    student_PL = scores(3, 4).requires_grad_()
    losses_P = label_cross_entropy(student_PL, torch.tensor([2, -1, 0]))
    expected = [
        -math.log(softmax(student_PL[0].tolist(), 1.0)[2]),
        0.0,
        -math.log(softmax(student_PL[2].tolist(), 1.0)[0]),
    ]
    assert losses_P.tolist() == pytest.approx(expected)
    losses_P.sum().backward()
    assert student_PL.grad is not None and student_PL.grad[1].abs().sum() == 0
