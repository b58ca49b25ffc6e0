"""Every divergence keeps the properties it claims, agrees with TRL, and is what training computes in tiles."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.autograd import gradcheck
from trl.experimental.gkd import GKDTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from rld.divergences import JSD, AnyDivergence, ForwardKL, ReverseKL

ALL = [member() for member in get_args(get_args(AnyDivergence)[0])] + [JSD(beta=0.1), JSD(beta=0.9)]
each = pytest.mark.parametrize("divergence", ALL, ids=repr)


def random_logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return random_logits(0, 4, 6, 11).log_softmax(-1), random_logits(1, 4, 6, 11).log_softmax(-1)


@each
def test_it_is_positive_and_zero_only_where_equal(divergence):
    student, teacher = pair()
    assert (divergence(student, teacher) > 0).all()
    torch.testing.assert_close(divergence(student, student), torch.zeros(4, 6, dtype=torch.float64), rtol=0, atol=1e-12)


@each
def test_its_gradient_is_right_and_vanishes_where_equal(divergence):
    logits, teacher = random_logits(2, 3, 7).requires_grad_(), random_logits(3, 3, 7).log_softmax(-1)
    assert gradcheck(lambda z: divergence(z.log_softmax(-1), teacher), logits)
    (gradient,) = torch.autograd.grad(divergence(logits.log_softmax(-1), logits.detach().log_softmax(-1)).sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@each
def test_a_token_the_teacher_never_says_gives_no_nan(divergence):
    student, teacher = pair()
    masked = teacher.masked_fill(torch.arange(11) == 3, -torch.inf).log_softmax(-1)
    value = divergence(student, masked)
    assert not value.isnan().any()
    assert (value > 0).all()


def test_jsd_is_at_most_log_two():
    apart = torch.eye(2, dtype=torch.float64).log()
    assert JSD()(apart[:1], apart[1:]).item() == pytest.approx(torch.tensor(2.0).log().item())


@each
def test_it_agrees_with_trl(divergence):
    student, teacher = pair()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=divergence.interpolation, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(student, teacher), theirs, rtol=1e-10, atol=1e-12)


@each
def test_the_tiled_form_is_the_reference(divergence):
    h_s, h_t = random_logits(4, 9, 5).float().requires_grad_(), random_logits(5, 9, 8).float()
    w_s, w_t = random_logits(6, 40, 5).float(), random_logits(7, 40, 8).float()
    tiled, _ = ChunkedDivergenceFunction.apply(h_s, w_s, None, h_t, w_t, None, divergence.interpolation, 1.5)
    plain = divergence((h_s @ w_s.T / 1.5).log_softmax(-1), (h_t @ w_t.T / 1.5).log_softmax(-1))
    torch.testing.assert_close(tiled, plain, rtol=1e-4, atol=1e-5)
    (ours,), (theirs,) = torch.autograd.grad(tiled.sum(), h_s), torch.autograd.grad(plain.sum(), h_s)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_directions_are_not_swapped():
    broad, narrow = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.999, 0.001]).log()
    assert ForwardKL()(narrow, broad) > 2 * ReverseKL()(
        narrow, broad
    )  # a narrow student misses half of a broad teacher
