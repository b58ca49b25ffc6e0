"""Weighted terms, the teacher-scored reward, and what stands between measurements and a controller."""

from __future__ import annotations

import math

import pytest
import torch

from rld.controllers.baselines import FixedController, ScheduleController, WeightSchedule
from rld.controllers.gap import GapController
from rld.controllers.observation import Weights
from rld.controllers.runtime import ControllerRuntime
from rld.errors import ControllerError
from rld.losses.policy import (
    blend,
    mean_likelihood,
    sign_preserving_advantages,
    teacher_advantages,
    teacher_delta,
    weighted_sum,
)
from rld.rollout.teacher_scoring import teacher_infos
from rld.teachers.teacher import Teacher
from rld.trainer.update_statistics import UpdateStatistics


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


def test_teachers_blend_by_weight_whatever_their_order():
    stream, weights = torch.rand(3, 2, 4), torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 0.0]])
    mixed = blend(stream, weights)
    torch.testing.assert_close(mixed[0], stream[0, 0])
    torch.testing.assert_close(mixed[2], torch.zeros(4))
    torch.testing.assert_close(mixed, blend(stream.flip(1), weights.flip(1)))


def test_a_gradient_is_measured_on_the_tokens_that_count_with_the_weight_taken_out():
    hidden = torch.zeros(3, 2, 5, requires_grad=True)  # three completions of 2 tokens
    weights = torch.tensor([1.0, 0.5, 0.0])
    total = (hidden.sum((1, 2)) * weights).sum()
    made = UpdateStatistics.empty(1, 1, torch.device("cpu"))
    made.add_gradient("response", total, hidden, weights, torch.tensor([[1, 0], [1, 1], [1, 1]]))
    assert made.scalars[3:5].tolist() == [15, 3]


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


def steering(controller=None, **changes) -> ControllerRuntime:
    teachers = [Teacher("a", name="a", **changes), Teacher("b", name="b")]
    return ControllerRuntime(
        controller or GapController(every=2, heartbeat=3),
        ["add", "sort"],
        teacher_infos(teachers),
        ["policy", "response"],
    )


def ledger(divergence: float = 0.2) -> UpdateStatistics:
    made = UpdateStatistics.empty(2, 2, torch.device("cpu"))
    skills, mask = torch.tensor([0, 1]), torch.ones(2, 4)
    made.add_tokens(skills, mask, 20)
    spoken = torch.tensor([[True, False], [True, True]])[..., None].expand(2, 2, 4)
    made.add_delta(skills, torch.full((2, 4), -3.0), mask, torch.tensor([[True], [False]]).expand(2, 4))
    made.add_streams(skills, mask, spoken, torch.full((2, 2, 4), divergence), None)
    return made


def test_a_ledger_is_a_table_per_skill():
    table = ledger().table
    torch.testing.assert_close(table[:, :3].float(), torch.tensor([[4.0, 36.0, 4.0], [4.0, 0.0, 0.0]]))
    torch.testing.assert_close(table[:, 3:5].float(), torch.tensor([[0.8, 0.0], [0.8, 0.8]]))
    torch.testing.assert_close(table[:, 5:7].float(), torch.tensor([[4.0, 0.0], [4.0, 4.0]]))
    assert not table[:, 7:].any()  # no feature signal: no distance, and no tokens that would make it look like 0


def test_the_spread_follows_delta_and_weights_change_only_at_ticks():
    made = steering()
    assert made.spread_S().tolist() == [1.0, 1.0]
    before = made.weights
    made.count(torch.tensor([[8.0, 1, 2, 1], [8.0, 8, 2, 0]]))
    made.update(ledger().table, torch.zeros(7), 1)
    assert made.spread_S().tolist() == [3.0, 3.0]  # unmeasured: as large as the others
    assert made.weights == before
    metrics, _ = made.update(ledger().table, torch.zeros(7), 2)
    assert made.weights != before
    assert metrics["progress/add"] == 1 / 8
    assert metrics["phase/add"] == 0
    assert metrics["divergence/a"] == pytest.approx(0.2)


def test_what_any_controller_turns_off_is_an_event():
    made = steering(
        ScheduleController(every=1, policy=1.0, response=WeightSchedule(start=0.5, end=0.0, over=0.5, shape="step"))
    )
    told = []
    for step in range(1, 5):
        told += made.update(ledger().table, torch.zeros(7), step, 4)[1]
    offs = [(event.step, event.kind, event.skill, event.about) for event in told if event.kind != "phase"]
    assert offs == [(2, "signal off", "add", "response"), (2, "signal off", "sort", "response")]
    assert told[0].measured == "weight 0.5 before, 0 now"


def test_only_needed_teachers_are_wanted_and_all_at_a_heartbeat():
    made = steering(FixedController(response=0.0, policy=1.0, every=1, heartbeat=3), skills=["add"])
    table, none = torch.tensor([[True, True], [False, True]]), torch.zeros(2, 2, dtype=torch.bool)
    made.count(torch.zeros(2, 4))
    assert torch.equal(made.wanted(0.0, made.teachers_SK), table)  # the first look
    made.update(ledger().table, torch.zeros(7), 1)
    made.count(torch.zeros(2, 4))
    assert torch.equal(made.wanted(0.0, made.teachers_SK), none)
    assert torch.equal(made.wanted(0.1, made.teachers_SK), table)  # the teacher-scored reward needs them
    for step in (2, 3, 4):
        made.update(ledger().table, torch.zeros(7), step)
    assert torch.equal(made.wanted(0.0, made.teachers_SK), none)  # due, but the rollout is still the old one
    made.count(torch.zeros(2, 4))
    assert torch.equal(made.wanted(0.0, made.teachers_SK), table)


def test_a_teacher_outside_its_skills_has_no_share():
    assert steering(FixedController(), skills=["add"]).teachers_SK.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_a_controller_that_gives_no_number_is_refused():
    class Wild(FixedController):
        def weights(self, state):
            return Weights({"add": {"policy": math.nan}, "sort": {}}, {"add": {}, "sort": {}})

    class Forgetful(FixedController):
        def weights(self, state):
            return Weights({"add": {}}, {"add": {}})

    with pytest.raises(ControllerError, match="Wild gave a weight"):
        steering(Wild())
    with pytest.raises(ControllerError, match="Forgetful gave no weights for skill 'sort'"):
        steering(Forgetful())


def test_a_student_that_learns_nothing_is_told_of_once():
    with pytest.warns(UserWarning, match="learns nothing") as told:
        made = steering(FixedController(policy=0, response=0, every=1))
        made.update(ledger().table, torch.zeros(7), 1)
    assert len(told) == 1


def test_a_saved_state_goes_on_the_same():
    one, two = steering(), steering()
    one.count(torch.tensor([[8.0, 1, 2, 1], [8.0, 8, 2, 0]]))
    one.update(ledger().table, torch.zeros(7), 1)
    two.load_state_dict(one.state_dict())
    for made in (one, two):
        made.update(ledger(0.01).table, torch.zeros(7), 2)
    assert one.state_dict() == two.state_dict()
