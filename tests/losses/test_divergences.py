"""Every divergence keeps the properties it claims and agrees with TRL."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.autograd import gradcheck
from trl.experimental.gkd import GKDTrainer

from rld.losses.divergences import (
    JSD,
    AdaptiveKL,
    AlphaBeta,
    AnyDivergence,
    ForwardKL,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    Taid,
    TotalVariation,
)

ALL = [member() for member in get_args(get_args(AnyDivergence)[0])] + [JSD(beta=0.1), JSD(beta=0.9)]
TRLS = [(ForwardKL(), 0.0), (JSD(), 0.5), (JSD(beta=0.1), 0.1), (JSD(beta=0.9), 0.9), (ReverseKL(), 1.0)]
PARTLY_HELD = (AdaptiveKL, Taid)  # their weights or target take no gradient, so differences of values don't show theirs
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
    if not isinstance(divergence, PARTLY_HELD):
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


@pytest.mark.parametrize(("divergence", "beta"), TRLS, ids=repr)
def test_it_agrees_with_trl(divergence, beta):
    student, teacher = pair()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(student, teacher), theirs, rtol=1e-10, atol=1e-12)


def test_adaptive_kl_weighs_the_directions_by_the_gaps_in_head_and_tail_and_holds_the_weights():
    logits, teacher = random_logits(2, 90).requires_grad_(), random_logits(3, 90).log_softmax(-1)
    student = logits.log_softmax(-1)
    order = teacher.argsort(descending=True).tolist()
    head, mass = [], 0.0
    while mass < 0.5:
        head.append(order[len(head)])
        mass += teacher[head[-1]].exp().item()
    gaps = (student.exp() - teacher.exp()).abs().detach()
    share = gaps[head].sum() / gaps.sum()
    expected = share * ForwardKL()(student, teacher) + (1 - share) * ReverseKL()(student, teacher)
    divergence = AdaptiveKL()(student, teacher)
    torch.testing.assert_close(divergence, expected)
    mine, reference = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (divergence, expected))
    torch.testing.assert_close(mine, reference)


def test_a_flat_teacher_has_a_long_head():
    flat = (-1e-6 * torch.arange(1000, dtype=torch.float64)).log_softmax(-1)[None]
    student = random_logits(1, 1, 1000).log_softmax(-1)
    gaps = (student.exp() - flat.exp()).abs()
    torch.testing.assert_close(AdaptiveKL(head=0.4995)._in_head(flat.exp(), gaps), gaps[:, :500].sum(-1))


def test_taids_target_starts_near_the_student_and_ends_at_the_teacher_without_a_gradient_of_its_own():
    logits, teacher = random_logits(2, 7).requires_grad_(), random_logits(3, 7).log_softmax(-1)
    student = logits.log_softmax(-1)
    assert Taid(start=0.2).at(0.5).start == pytest.approx(0.6)
    torch.testing.assert_close(Taid().at(1.0)(student, teacher), ForwardKL()(student, teacher))
    target = (0.7 * student + 0.3 * teacher).detach().log_softmax(-1)
    expected, found = ForwardKL()(student, target), Taid(start=0.3)(student, teacher)
    torch.testing.assert_close(found, expected)
    mine, reference = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(mine, reference)


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
