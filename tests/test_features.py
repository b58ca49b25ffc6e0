"""Feature losses and layer maps."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from rld.features import MSE, AnyFeature, Cosine, layer_pairs

ALL = [member() for member in get_args(get_args(AnyFeature)[0])]
each = pytest.mark.parametrize("feature", ALL, ids=repr)


def states(seed: int) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


@each
def test_it_is_positive_zero_where_equal_and_blind_to_scale(feature):
    student, teacher = states(0), states(1)
    assert (feature(student, teacher) > 0).all()
    torch.testing.assert_close(feature(student, student), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(feature(student * 1000, teacher), feature(student, teacher), rtol=1e-4, atol=1e-5)


@each
def test_its_gradient_reaches_the_student_alone_and_is_right(feature):
    student, teacher = states(0).requires_grad_(), states(1).requires_grad_()
    feature(student, teacher).sum().backward()
    assert teacher.grad is None
    analytic = student.grad.clone()
    step = 1e-2
    for index in ((0, 0), (3, 2), (5, 4)):
        nudge = torch.zeros_like(student)
        nudge[index] = step
        numeric = (feature(student + nudge, teacher) - feature(student - nudge, teacher)).sum() / (2 * step)
        assert analytic[index].item() == pytest.approx(numeric.item(), rel=2e-2, abs=1e-3)


def test_mse_is_twice_the_cosine_distance():
    torch.testing.assert_close(MSE()(states(0), states(1)), 2 * Cosine()(states(0), states(1)), rtol=1e-4, atol=1e-5)


def test_layer_maps():
    assert layer_pairs("last", 3, 4) == [(3, 4)]
    assert layer_pairs("uniform", 3, 6) == [(1, 2), (2, 4), (3, 6)]
    assert layer_pairs({2: 3, 1: 1}, 3, 4) == [(1, 1), (2, 3)]
    with pytest.raises(ValueError, match="student has layers 0 to 3"):
        layer_pairs({4: 1}, 3, 4)
