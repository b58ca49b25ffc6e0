"""Controllers as state machines: bounds, reaction, no flapping, JSON, corners. No model is trained here."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rld.controllers import AnyController, Fixed
from rld.gap import Gap
from rld.types import SIGNALS, Observation, SkillSeen, TeacherSeen, Weights

KINDS = [member() for member in get_args(get_args(AnyController)[0])]
SKILLS, TEACHERS = ["add", "sort"], ["a", "b"]


def start(controller: Any) -> Any:
    return controller.start(SKILLS, TEACHERS, list(SIGNALS))


def seen(step: int = 1, gradients: Any = None, **skills: SkillSeen) -> Observation:
    return Observation(step, skills, gradients or {})


def skill(
    p: float = 0.5, informative: float = 0.5, a: tuple[int, int] = (32, 32), b: tuple[int, int] = (0, 32)
) -> SkillSeen:
    """40 attempts in 10 groups, and what two teachers were seen to know."""
    teachers = {"a": TeacherSeen(0.2, *a), "b": TeacherSeen(0.2, *b)}
    return SkillSeen(40, round(40 * p), 10, round(10 * informative), teachers)


def check(weights: Weights) -> None:
    for name in SKILLS:
        values = [*weights.signals[name].values(), *weights.teachers[name].values()]
        assert all(0 <= w <= 1 and math.isfinite(w) for w in values)
        total = sum(weights.teachers[name].values())
        assert total == pytest.approx(1) or total == 0


observations = st.builds(
    lambda n, s, g, i, d, v, p, t: SkillSeen(n, min(s, n), g, min(i, g), {"a": TeacherSeen(d, min(v, p), p, t)}),
    *(st.integers(0, 50),) * 4,
    st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
    *(st.integers(0, 40),) * 2,
    st.booleans(),
)


@pytest.mark.parametrize("controller", KINDS, ids=lambda c: c.kind)
@settings(max_examples=40, deadline=None)
@given(data=st.lists(st.tuples(observations, st.one_of(st.floats(0), st.just(math.nan))), max_size=12))
def test_weights_stay_weights_whatever_is_seen(controller, data):
    state = start(controller)
    check(controller.weights(state))
    for step, (news, norm) in enumerate(data):
        state, weights, _ = controller.step(state, seen(step, {"policy": norm, "response": 1.0}, add=news))
        check(weights)
        assert all(0.1 <= scale <= 10 for scale in weights.scale.values())
    again = json.loads(json.dumps(state))
    assert controller.weights(again) == controller.weights(state)


@pytest.mark.parametrize("controller", KINDS, ids=lambda c: c.kind)
def test_a_step_does_not_change_the_state_it_was_given(controller):
    state = start(controller)
    before = json.dumps(state)
    controller.step(state, seen(add=skill()))
    assert json.dumps(state) == before


def run(controller: Gap, ticks: int, **skills: SkillSeen) -> tuple[Any, Weights, list[Any]]:
    state, events = start(controller), []
    for tick in range(ticks):
        state, weights, news = controller.step(state, seen(tick, **skills))
        events += news
    return state, weights, events


def test_a_teacher_that_fails_a_skill_is_off_within_three_ticks_and_back_when_it_is_good():
    controller = Gap()
    state, weights, events = run(controller, 3, add=skill(p=0.1), sort=skill(p=0.1, a=(0, 32), b=(32, 32)))
    assert weights.teachers["add"] == {"a": pytest.approx(1), "b": 0}
    assert weights.teachers["sort"] == {"a": 0, "b": pytest.approx(1)}
    assert {(e.kind, e.skill, e.about) for e in events} == {("teacher off", "add", "b"), ("teacher off", "sort", "a")}
    for tick in range(4):
        state, weights, _ = controller.step(state, seen(tick, add=skill(p=0.1, a=(0, 32), b=(32, 32))))
    assert weights.teachers["add"]["b"] > 0.5


def test_distillation_leads_while_reinforcement_is_blind_and_leaves_once_the_student_is_level():
    _, early, _ = run(Gap(), 6, add=skill(p=0.0, informative=0.0))
    assert early.signals["add"]["response"] > 0.7 > 0.1 > early.signals["add"]["policy"] > 0
    _, late, events = run(Gap(), 12, add=skill(p=0.99, informative=0.1))
    assert late.signals["add"]["policy"] == pytest.approx(1)
    assert late.teachers["add"] == {"a": 0, "b": 0}
    assert ("signal off", "add", "response") in {(e.kind, e.skill, e.about) for e in events}


def test_weights_follow_the_skill_they_belong_to():
    _, weights, _ = run(Gap(), 8, add=skill(p=0.1, informative=0.1), sort=skill(p=0.9, informative=0.6))
    assert weights.signals["add"]["response"] > weights.signals["sort"]["response"]
    assert weights.signals["sort"]["policy"] > weights.signals["add"]["policy"]


def test_a_steady_measurement_switches_nothing_twice():
    _, _, events = run(Gap(), 200, add=skill(p=0.85, informative=0.3))
    keys = [(e.skill, e.about) for e in events]
    assert len(keys) == len(set(keys))


def test_unprobed_teachers_count_alike_until_the_student_is_level_with_them():
    far = SkillSeen(40, 20, 10, 5, {"a": TeacherSeen(0.5), "b": TeacherSeen(0.01)})
    _, weights, _ = run(Gap(), 5, add=far)
    assert weights.teachers["add"] == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}
    level = SkillSeen(40, 20, 10, 5, {"a": TeacherSeen(0.001), "b": TeacherSeen(0.0)})
    _, weights, _ = run(Gap(), 5, add=level)
    assert weights.teachers["add"] == {"a": 0, "b": 0}


def test_a_skill_outside_a_teachers_subjects_never_gets_it():
    news = SkillSeen(40, 4, 10, 5, {"a": TeacherSeen(0.2, 32, 32, teaches=False), "b": TeacherSeen(0.2, 20, 32)})
    _, weights, _ = run(Gap(), 5, add=news)
    assert weights.teachers["add"] == {"a": 0, "b": pytest.approx(1)}


def test_policy_alone_weighs_exactly_one():
    controller = Gap()
    state = controller.start(["all"], [], ["policy"])
    for tick in range(5):
        state, weights, _ = controller.step(state, Observation(tick, {"all": SkillSeen(40, tick, 10, tick)}))
        assert weights.signals == {"all": {"policy": 1.0}}


def test_gradients_are_evened_out_within_a_factor_of_ten():
    controller = Gap()
    _, weights, _ = controller.step(
        start(controller), seen(gradients={"policy": 1.0, "response": 0.5, "feature": 1e-4})
    )
    assert weights.scale == {"response": pytest.approx(2), "feature": 10.0}
    _, weights, _ = controller.step(start(controller), seen(gradients={"policy": None, "response": 0.5}))
    assert weights.scale == {}


def test_fixed_weights_are_fixed_and_teachers_are_shares():
    controller = Fixed(policy=0.2, response=0.7, feature=0.1, teachers={"a": 3.0, "b": 1.0})
    _, weights, events = controller.step(start(controller), seen(add=skill()))
    assert weights.signals["add"] == {"policy": 0.2, "response": 0.7, "feature": 0.1}
    assert weights.teachers["sort"] == {"a": 0.75, "b": 0.25}
    assert events == []
