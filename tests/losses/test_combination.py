"""Rules that combine teachers and weigh tokens."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from rld.losses.combination import Agreement, AnyCombination, BestOf, Confidence, Geometric, Mixture, Route, entropy
from rld.losses.divergences import ForwardKL, ReverseKL
from rld.losses.token_weights import AnyTokenWeights, DivergenceWeights, TargetConfidence, TopShare

COMBINATIONS = [member() for member in get_args(get_args(AnyCombination)[0])]
TOKEN_WEIGHTS = [member() for member in get_args(get_args(AnyTokenWeights)[0])]
RIGHT, WRONG = torch.tensor([[0.98, 0.01, 0.01]]).log(), torch.tensor([[1e-6, 0.98, 0.02]]).log()
HALVES = torch.tensor([[0.5, 0.5]])


def teachers(num: int = 3, tokens: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num, tokens, 7, generator=generator, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("rule", [rule for rule in COMBINATIONS if rule.pools], ids=repr)
def test_a_target_is_a_distribution_and_one_teacher_alone_is_its_own(rule):
    weights = torch.tensor([[0.2, 0.3, 0.5], [1, 0, 0], [0, 0, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    target, strength = rule.target(teachers(), weights)
    torch.testing.assert_close(target.exp().sum(-1), torch.ones(4).double())
    torch.testing.assert_close(target[1], teachers()[0, 1])
    assert strength[1] == 1
    assert strength[2] == 0
    assert (strength <= weights.sum(-1) + 1e-12).all()


def test_a_wrong_teacher_has_a_veto_in_the_product_and_none_in_the_mixture():
    pair = torch.stack([RIGHT, WRONG])
    assert Mixture().target(pair, HALVES)[0].exp()[0, 0].item() == pytest.approx(0.49, abs=1e-3)
    assert Geometric().target(pair, HALVES)[0].exp()[0, 0].item() == pytest.approx(0.009, abs=1e-3)


def test_summed_divergences_aim_at_the_mixture_forwards_and_at_the_product_backwards():
    """Sum_k w_k KL(t_k || s) and KL(mixture || s) differ by a constant; so do the reverse KLs and the product."""
    weights, given = torch.tensor([[0.2, 0.3, 0.5]]).double(), teachers(tokens=1)
    for divergence, rule in ((ForwardKL(), Mixture()), (ReverseKL(), Geometric())):
        target, _ = rule.target(given, weights)
        apart = []
        for seed in range(3):
            student = torch.randn(1, 7, generator=torch.Generator().manual_seed(seed)).double().log_softmax(-1)
            summed = sum(weights[0, k] * divergence(student, given[k]) for k in range(3))
            apart.append((summed - divergence(student, target)).item())
        assert apart == pytest.approx([apart[0]] * 3)


def test_confidence_follows_the_surer_teacher():
    sure, unsure = torch.tensor([[0.98, 0.01, 0.01]]).log(), torch.tensor([[0.1, 0.45, 0.45]]).log()
    shares = (-torch.stack([entropy(sure), entropy(unsure)])).exp()
    shares = shares / shares.sum()
    expected = shares[0] * sure.exp() + shares[1] * unsure.exp()
    torch.testing.assert_close(Confidence().target(torch.stack([sure, unsure]), HALVES)[0].exp(), expected)


def test_teachers_that_contradict_each_other_are_not_heard():
    pair = torch.stack([RIGHT, WRONG])
    assert Agreement(limit=0.2).target(pair, HALVES)[1].item() == 0
    assert Agreement(limit=0.7).target(pair, HALVES)[1].item() == 1  # above ln 2, their most
    assert Agreement(limit=0.2).target(torch.stack([RIGHT, RIGHT]), HALVES)[1].item() == 1
    assert Agreement(limit=0.2).target(pair, torch.tensor([[1.0, 0.0]]))[1].item() == 1


@pytest.mark.parametrize("rule", COMBINATIONS, ids=repr)
def test_weights_keep_their_sum_shut_out_teachers_stay_out_and_order_does_not_matter(rule):
    weights = torch.tensor([[0.2, 0.8, 0.0]] * 2 + [[0.4, 0.4, 0.2]] * 2)
    likelihood = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, -1.0, 0.0], [-1.0, -2.0, -3.0], [-1.0, -0.5, -torch.inf]])
    correct = torch.tensor([True, False, True, True])
    for found, turned in (
        (rule.shares(weights), rule.shares(weights.flip(1))),
        (
            rule.completion_weights(weights, likelihood, correct, 2),
            rule.completion_weights(weights.flip(1), likelihood.flip(1), correct, 2),
        ),
    ):
        torch.testing.assert_close(found.sum(1), torch.ones(4))
        assert not found[:2, 2].any()
        torch.testing.assert_close(turned.flip(1), found)


def test_routing_takes_the_heaviest_and_best_of_the_one_that_likes_correct_completions():
    weights = torch.tensor([[0.2, 0.8]] * 4)
    likelihood = torch.tensor([[-1.0, -2.0], [-9.0, -1.0], [-1.0, -2.0], [-1.0, -2.0]])
    correct = torch.tensor([True, False, False, False])
    assert Route().shares(weights).tolist() == [[0, 1]] * 4
    assert Route().shares(torch.tensor([[0.4, 0.4, 0.2]])).tolist() == [[0.5, 0.5, 0.0]]
    best = BestOf().completion_weights(weights, likelihood, correct, 2)
    torch.testing.assert_close(best, torch.tensor([[1.0, 0.0]] * 2 + [[0.2, 0.8]] * 2))
    absent = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    only_first = torch.tensor([[-1.0, -torch.inf], [-torch.inf] * 2] * 2)
    best = BestOf().completion_weights(absent, only_first, correct, 2)
    torch.testing.assert_close(best, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]))
    silent = torch.tensor([[-torch.inf, -2.0]] * 4)
    assert BestOf().completion_weights(weights, silent, torch.ones(4).bool(), 2).tolist() == [[0, 1]] * 4


def test_confidence_does_not_underflow_nor_let_in_who_has_no_weight():
    flat, others = torch.zeros(2, 1, 500).log_softmax(-1), torch.randn(1, 1, 500).log_softmax(-1)
    target, strength = Confidence(temperature=0.01).target(torch.cat([flat, others]), torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(target, flat[0])
    assert strength == 1


@pytest.mark.parametrize("rule", TOKEN_WEIGHTS, ids=repr)
def test_token_weights_are_not_negative_and_blind_to_padding(rule):
    gap, teacher, student = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    weights = rule(gap, teacher, student, mask)
    assert (weights >= 0).all()
    garbage = torch.where(mask, gap, 1e6), torch.where(mask, teacher, 1e6), torch.where(mask, student, 1e6)
    torch.testing.assert_close(rule(*garbage, mask)[mask], weights[mask])
    alone = rule(gap[1:, :3], teacher[1:, :3], student[1:, :3], mask[1:, :3])
    torch.testing.assert_close(alone[0], weights[1, :3])


def test_tokens_of_a_student_that_agrees_but_for_rounding_count_alike():
    gap, mask = torch.tensor([[1e-9, 0.0, 3e-8, 5.0]]), torch.tensor([[True, True, True, False]])
    assert DivergenceWeights()(gap, gap, gap, mask).tolist() == [[1, 1, 1, 0]]


def test_token_weights_follow_what_they_are_named_after():
    gap = torch.tensor([[0.1, 0.2, 0.3, 0.4, 9.0]])
    entropies, mask = torch.tensor([[0.0, 1.0, 2.0, 3.0, 9.0]]), torch.tensor([[True] * 4 + [False]])
    torch.testing.assert_close(
        DivergenceWeights()(gap, entropies, entropies, mask)[mask], torch.tensor([0.4, 0.8, 1.2, 1.6])
    )
    torch.testing.assert_close(
        TargetConfidence()(gap, entropies, gap, mask)[mask], torch.tensor([0.0, -1, -2, -3]).exp()
    )
    assert TopShare(share=0.3)(gap, gap, gap, mask).tolist() == [[0, 0, 1, 1, 0]]
    assert TopShare(by="teacher_entropy", share=0.1)(gap.flip(1), entropies, gap, mask).tolist() == [[0, 0, 0, 1, 0]]
