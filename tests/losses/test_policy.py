"""Weighted terms and the teacher-scored reward."""

from __future__ import annotations

import math

import torch

from rld.losses.policy import (
    mean_likelihood,
    sign_preserving_advantages,
    sum_over_teachers,
    teacher_advantages,
    teacher_delta,
    weighted_sum,
)


def test_the_teacher_scored_reward_is_added_per_token_clamped_and_only_where_a_teacher_spoke():
    advantages, spread = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.01])
    delta = torch.tensor([[2.0, -4.0], [5.0, -5.0]])
    shaped = teacher_advantages(advantages, delta, spread, 0.1, torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(shaped, torch.tensor([[1.1, 0.8], [0.0, -2.0]]))
    alone = teacher_advantages(advantages, delta, spread, 0.1, torch.tensor([[False, True], [True, True]]))
    torch.testing.assert_close(alone[0], torch.tensor([1.0, 0.8]))


def test_its_gradient_lowers_the_reverse_kl():
    """The expected policy gradient of the sampled-token reward is minus the gradient of KL(student || teacher)."""
    logits = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    teacher = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(-1)
    log_pi = logits.log_softmax(-1)
    delta = (teacher - log_pi).detach()
    expected = torch.autograd.grad((log_pi.exp().detach() * delta * log_pi).sum(), logits, retain_graph=True)[0]
    kl = torch.autograd.grad((log_pi.exp() * (log_pi - teacher)).sum(), logits)[0]
    torch.testing.assert_close(expected, -kl)


def test_masked_values_never_reach_a_sum():
    stream = torch.tensor([[1.0, math.nan], [2.0, math.inf]])
    mask = torch.tensor([[1, 0], [1, 0]])
    assert weighted_sum(stream, torch.tensor([0.5, 2.0]), mask).item() == 4.5


def test_teachers_sum_over_teachers_by_weight_whatever_their_order():
    stream, weights = torch.rand(3, 2, 4), torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 0.0]])
    mixed = sum_over_teachers(stream, weights)
    torch.testing.assert_close(mixed[0], stream[0, 0])
    torch.testing.assert_close(mixed[2], torch.zeros(4))
    torch.testing.assert_close(mixed, sum_over_teachers(stream.flip(1), weights.flip(1)))


def test_delta_is_the_weighted_difference_of_log_probabilities_token_by_token_and_span_by_span():
    scores = torch.tensor([[[-1.0, -2.0, -9.0], [-4.0, -4.0, -1.0]]])
    spans = torch.tensor([[[0, 1, -1], [0, 0, 1]]])
    log_old = torch.tensor([[-1.5, -1.0, -0.5]])
    delta, share = teacher_delta(scores, spans, log_old, torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(delta, torch.tensor([[0.125 - 1.125, -0.25 - 1.125, -0.375]]))
    torch.testing.assert_close(share, torch.tensor([[1.0, 1.0, 0.75]]))


def test_a_teachers_mean_likelihood_counts_each_span_once_and_is_nothing_where_it_is_silent():
    scores = torch.tensor([[[-4.0, -4.0, -1.0, -9.0], [0.0, 0.0, 0.0, 0.0]]])
    spans = torch.tensor([[[0, 0, 1, 2], [-1, -1, -1, -1]]])
    mean = mean_likelihood(scores, spans, torch.tensor([[1, 1, 1, 0]]))
    torch.testing.assert_close(mean, torch.tensor([[-5.0 / 3, -math.inf]]))


def test_the_sign_preserving_form_scales_and_never_turns_round():
    advantages = torch.tensor([2.0, -2.0, 0.0])
    delta = torch.tensor([[0.1, -50.0, 50.0]]).expand(3, 3)
    taught = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    shaped = sign_preserving_advantages(advantages, delta, 0.5, taught)
    up = 2 * (0.5 + 0.5 * math.exp(0.1))
    down = -2 * (0.5 + 0.5 * math.exp(-0.1))
    torch.testing.assert_close(shaped, torch.tensor([[up, 1.5, 2.5], [down, -2.5, -2.0], [0.0, 0.0, 0.0]]))
