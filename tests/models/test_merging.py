"""Merged weights against float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rld.errors import RecipeError
from rld.models.merging import linear, require_same_shapes, slerp, task_arithmetic
from tests.support import tiny


def test_merging_a_model_with_itself_changes_nothing() -> None:
    weights = {name: w.to(torch.bfloat16) for name, w in tiny.model().state_dict().items()}
    for merged in (
        linear([weights] * 3, [1, 1, 1]),
        slerp([weights] * 2, 0.3),
        task_arithmetic(weights, [weights, weights], [0.7, -0.2]),
    ):
        assert all(torch.equal(merged[name], weight) for name, weight in weights.items())


def test_merged_weights_are_those_of_the_formulas() -> None:
    a, b, base = (tiny.model(seed).state_dict() for seed in (0, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    x, y, z = (weights[name].double().numpy() for weights in (a, b, base))
    np.testing.assert_allclose(linear([a, b], [3, 1])[name], 0.75 * x + 0.25 * y, rtol=1e-6, atol=1e-7)
    expected = z + 0.5 * (x - z) - 0.25 * (y - z)
    np.testing.assert_allclose(task_arithmetic(base, [a, b], [0.5, -0.25])[name], expected, rtol=1e-6, atol=1e-7)
    angle = np.arccos((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    expected = (np.sin(0.6 * angle) * x + np.sin(0.4 * angle) * y) / np.sin(angle)
    np.testing.assert_allclose(slerp([a, b], 0.4)[name], expected, rtol=1e-6, atol=1e-7)


def test_models_of_other_shapes_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"a and b cannot be merged: lm_head.weight has the shapes \(15, 32\)"):
        require_same_shapes(["a", "b"], [tiny.model(), tiny.model(width=16)])
