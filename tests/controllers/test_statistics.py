"""Sums over micro-batches, processes and updates."""

from __future__ import annotations

import json

import torch

from rld.controllers.statistics import UpdateStatistics, WindowStatistics
from tests.support.update_statistics import statistics


def test_sums_are_per_skill_and_teacher():
    sums = statistics()
    assert (sums.tokens_S.tolist(), sums.student_tokens.item(), sums.padding_tokens.item()) == ([4, 4], 20, 3)
    assert (sums.delta_squares_S.tolist(), sums.delta_tokens_S.tolist()) == ([36, 0], [4, 0])
    torch.testing.assert_close(sums.divergence_SK.float(), torch.tensor([[0.8, 0.0], [0.8, 0.8]]))
    assert sums.divergence_tokens_SK.tolist() == [[4, 0], [4, 4]]
    assert not sums.distance_tokens_SK.any()  # no feature signal: no tokens that would make the distance look like 0


def test_sums_are_added_by_name_and_survive_json():
    window = WindowStatistics.zeros(2, 2)
    window.updates += statistics()
    window.updates += statistics()
    window.gate.prompts_SK[1] = torch.tensor([3.0, 5.0])
    assert window.updates.tokens_S.tolist() == [8, 8]
    saved = json.loads(json.dumps(window.to_json()))
    assert WindowStatistics.from_json(saved).to_json() == window.to_json()


def test_sums_of_teachers_follow_their_names():
    window = WindowStatistics.zeros(2, 2)
    window.gate.prompts_SK[1] = torch.tensor([3.0, 5.0])
    other = window.for_teachers(["a", "b"], ["b", "new", "a"])
    assert other.gate.prompts_SK.tolist() == [[0, 0, 0], [5, 0, 3]]
    assert other.updates.tokens_S.tolist() == [0, 0]


def test_a_gradient_is_measured_on_the_tokens_that_count_with_the_weight_taken_out():
    hidden = torch.zeros(3, 2, 5, requires_grad=True)  # three completions of 2 tokens
    weights = torch.tensor([1.0, 0.5, 0.0])
    total = (hidden.sum((1, 2)) * weights).sum()
    made = UpdateStatistics.zeros(1, 1)
    made.add_gradient("response", total, hidden, weights, torch.tensor([[1, 0], [1, 1], [1, 1]]))
    assert made.gradient_squares_G.tolist() == [0, 15, 0]
    assert made.gradient_tokens_G.tolist() == [0, 3, 0]
