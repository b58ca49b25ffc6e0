"""Every divergence keeps the properties it claims, agrees with TRL, and is what training computes in tiles."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.autograd import gradcheck
from trl.experimental.gkd import GKDTrainer

from rld import tiles
from rld.divergences import (
    JSD,
    AlphaBeta,
    AnyDivergence,
    ForwardKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from rld.heads import Head
from rld.student import SignalInputs, _tiled

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


@pytest.mark.parametrize("divergence", [d for d in ALL if d.interpolation is not None], ids=repr)
def test_it_agrees_with_trl(divergence):
    student, teacher = pair()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=divergence.interpolation, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(student, teacher), theirs, rtol=1e-10, atol=1e-12)


@each
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_training_in_tiles_is_the_reference(divergence, softcap, monkeypatch):
    monkeypatch.setattr(tiles, "_TOKENS", 4)
    monkeypatch.setattr(tiles, "_VOCABULARY", 16)
    h_s, h_t = random_logits(4, 9, 5).float().requires_grad_(), random_logits(5, 9, 8).float()
    w_s, w_t = random_logits(6, 40, 5).float().requires_grad_(), random_logits(7, 40, 8).float()
    bias = random_logits(8, 40).float().requires_grad_()
    ours, theirs = Head(w_s, bias, 0.7, softcap), Head(w_t, None, 1.0, None)
    signals = SignalInputs(torch.ones(1), [], divergence, 1.5, None)
    tiled = _tiled(divergence, h_s, ours, h_t, theirs, signals)

    z = 0.7 * (h_s @ w_s.T + bias)
    z = z if softcap is None else softcap * (z / softcap).tanh()
    plain = divergence((z / 1.5).log_softmax(-1), (h_t @ w_t.T / 1.5).log_softmax(-1))
    torch.testing.assert_close(tiled, plain, rtol=1e-4, atol=1e-5)
    weights = torch.arange(1.0, 10.0)
    mine = torch.autograd.grad((weights * tiled).sum(), (h_s, w_s, bias))
    reference = torch.autograd.grad((weights * plain).sum(), (h_s, w_s, bias))
    for ours_grad, theirs_grad in zip(mine, reference, strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=1e-4)


def test_limits_of_the_families():
    student, teacher = pair()
    near = {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(AlphaBeta(alpha=1, beta=1e-4)(student, teacher), ForwardKL()(student, teacher), **near)
    torch.testing.assert_close(AlphaBeta(alpha=1e-4, beta=1)(student, teacher), ReverseKL()(student, teacher), **near)
    torch.testing.assert_close(SkewKL(skew=1e-6)(student, teacher), ForwardKL()(student, teacher), **near)
    torch.testing.assert_close(SkewReverseKL(skew=1e-6)(student, teacher), ReverseKL()(student, teacher), **near)
    assert (TotalVariation()(student, teacher) <= 1).all()


def test_the_directions_are_not_swapped():
    broad, narrow = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.999, 0.001]).log()
    assert ForwardKL()(narrow, broad) > 2 * ReverseKL()(
        narrow, broad
    )  # a narrow student misses half of a broad teacher


def test_averaging_over_teachers_aims_at_their_mixture_with_forward_kl_and_at_their_product_with_reverse_kl():
    logits, weights = random_logits(9, 7).requires_grad_(), torch.tensor([0.3, 0.7], dtype=torch.float64)
    teachers = random_logits(10, 2, 7).log_softmax(-1)

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits)[0]

    mixture = (weights[:, None] * teachers.exp()).sum(0).log()
    product = (weights[:, None] * teachers).sum(0).log_softmax(-1)
    for divergence, target in ((ForwardKL(), mixture), (ReverseKL(), product)):
        student = logits.log_softmax(-1)
        averaged = (weights * divergence(student.expand(2, 7), teachers)).sum()
        torch.testing.assert_close(gradient(averaged), gradient(divergence(logits.log_softmax(-1), target)))
