"""Controllers as state machines: bounds, reaction, no flapping, JSON, corners. No model is trained here."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rld.controllers import AnyController
from rld.controllers.baselines import (
    FixedController,
    RandomController,
    ScheduleController,
    SequentialController,
    WeightSchedule,
)
from rld.controllers.gap import GapController
from rld.controllers.observation import Observation, SkillObservation, TeacherObservation, Weights
from rld.controllers.replayed import ReplayedController
from rld.errors import ControllerError
from rld.types import SIGNALS

KINDS = [member() for member in get_args(get_args(AnyController)[0]) if member is not ReplayedController]
"""`ReplayedController` can do nothing without a run; `test_replayed.py` tests it."""
SKILLS, TEACHERS = ["add", "sort"], ["a", "b"]


def start(controller: Any) -> Any:
    return controller.start(SKILLS, TEACHERS, list(SIGNALS))


def seen(step: int = 1, gradients: Any = None, **skills: SkillObservation) -> Observation:
    return Observation(step, skills, gradients or {})


def skill(
    p: float = 0.5, informative: float = 0.5, a: tuple[int, int] = (32, 32), b: tuple[int, int] = (0, 32)
) -> SkillObservation:
    """40 attempts in 10 groups, and what two teachers were seen to know."""
    teachers = {"a": TeacherObservation(0.2, *a), "b": TeacherObservation(0.2, *b)}
    return SkillObservation(40, round(40 * p), 10, round(10 * informative), teachers)


def check(weights: Weights) -> None:
    for name in SKILLS:
        values = [*weights.signals[name].values(), *weights.teachers[name].values()]
        assert all(0 <= w <= 1 and math.isfinite(w) for w in values)
        total = sum(weights.teachers[name].values())
        assert total == pytest.approx(1) or total == 0


def part(whole: int, number: int) -> tuple[int, int]:
    return whole, min(number, whole)


def some_of(most: int) -> Any:
    """A number, and how many of them."""
    return st.builds(part, *(st.integers(0, most),) * 2)


observations = st.builds(
    lambda student, groups, divergence, probed, teaches, asked, tried, audited: SkillObservation(
        *student,
        *groups,
        {"a": TeacherObservation(divergence, *probed[::-1], teaches, *asked, *(tried if asked[1] else (0, 0)))},
        *audited,
    ),
    *(some_of(50), some_of(50)),
    st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
    some_of(40),
    st.booleans(),
    *(some_of(30), some_of(120), some_of(12)),
)


@pytest.mark.parametrize("controller", KINDS, ids=lambda c: c.kind)
@settings(max_examples=40, deadline=None)
@given(data=st.lists(st.tuples(observations, st.one_of(st.floats(0), st.just(math.nan))), max_size=40))
def test_weights_stay_weights_whatever_is_seen(controller, data):
    state = start(controller)
    check(controller.weights(state))
    for step, (news, norm) in enumerate(data):
        state, weights, _ = controller.step(state, seen(step, {"policy": norm, "response": 1.0}, add=news))
        check(weights)
        assert all(0.1 <= scale <= 10 for scale in weights.scale.values())
        if isinstance(controller, GapController):
            assert all(
                sum(signals.values()) == pytest.approx(1) or not any(signals.values())
                for signals in weights.signals.values()
            )
            assert sum(weights.allocation.values()) == pytest.approx(1)
            assert min(weights.allocation.values()) >= 0.2 / len(SKILLS) - 1e-9
    again = json.loads(json.dumps(state))
    assert controller.weights(again) == controller.weights(state)


@pytest.mark.parametrize("controller", KINDS, ids=lambda c: c.kind)
def test_a_step_does_not_change_the_state_it_was_given(controller):
    state = start(controller)
    before = json.dumps(state)
    controller.step(state, seen(add=skill()))
    assert json.dumps(state) == before


def run(controller: GapController, ticks: int, **skills: SkillObservation) -> tuple[Any, Weights, list[Any]]:
    state, events = start(controller), []
    for tick in range(ticks):
        state, weights, news = controller.step(state, seen(tick, **skills))
        events += news
    return state, weights, events


def test_a_teacher_that_fails_a_skill_is_off_within_three_ticks_and_back_when_it_is_good():
    controller = GapController()
    state, weights, events = run(controller, 3, add=skill(p=0.1), sort=skill(p=0.1, a=(0, 32), b=(32, 32)))
    assert weights.teachers["add"] == {"a": pytest.approx(1), "b": 0}
    assert weights.teachers["sort"] == {"a": 0, "b": pytest.approx(1)}
    assert {(e.kind, e.skill, e.about) for e in events} == {("teacher off", "add", "b"), ("teacher off", "sort", "a")}
    for tick in range(3):
        state, weights, _ = controller.step(state, seen(tick, add=skill(p=0.1, a=(0, 32), b=(32, 32))))
    assert weights.teachers["add"]["b"] > 0.5


def test_distillation_leads_while_reinforcement_is_blind_and_leaves_once_the_student_is_level():
    _, early, _ = run(GapController(), 6, add=skill(p=0.0, informative=0.0))
    assert early.signals["add"]["response"] > 0.7 > 0.1 > early.signals["add"]["policy"] > 0
    _, late, events = run(GapController(), 12, add=skill(p=0.99, informative=0.1))
    assert late.signals["add"]["policy"] == pytest.approx(1)
    assert late.teachers["add"] == {"a": 0, "b": 0}
    assert ("signal off", "add", "response") in {(e.kind, e.skill, e.about) for e in events}


def test_weights_follow_the_skill_they_belong_to():
    _, weights, _ = run(GapController(), 8, add=skill(p=0.1, informative=0.1), sort=skill(p=0.9, informative=0.6))
    assert weights.signals["add"]["response"] > weights.signals["sort"]["response"]
    assert weights.signals["sort"]["policy"] > weights.signals["add"]["policy"]


def test_a_steady_measurement_switches_nothing_twice():
    _, _, events = run(GapController(), 200, add=skill(p=0.85, informative=0.3))
    keys = [(e.skill, e.about) for e in events]
    assert len(keys) == len(set(keys))


def test_unprobed_teachers_count_alike_until_the_student_is_level_with_them():
    far = SkillObservation(40, 20, 10, 5, {"a": TeacherObservation(0.5), "b": TeacherObservation(0.01)})
    _, weights, _ = run(GapController(), 5, add=far)
    assert weights.teachers["add"] == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}
    level = SkillObservation(40, 20, 10, 5, {"a": TeacherObservation(0.001), "b": TeacherObservation(0.0)})
    _, weights, _ = run(GapController(), 5, add=level)
    assert weights.teachers["add"] == {"a": 0, "b": 0}


def test_a_skill_outside_a_teachers_subjects_never_gets_it():
    news = SkillObservation(
        40, 4, 10, 5, {"a": TeacherObservation(0.2, 32, 32, teaches=False), "b": TeacherObservation(0.2, 20, 32)}
    )
    _, weights, _ = run(GapController(), 5, add=news)
    assert weights.teachers["add"] == {"a": 0, "b": pytest.approx(1)}


def test_policy_alone_weighs_exactly_one():
    controller = GapController()
    state = controller.start(["all"], [], ["policy"])
    for tick in range(5):
        state, weights, _ = controller.step(state, Observation(tick, {"all": SkillObservation(40, tick, 10, tick)}))
        assert weights.signals == {"all": {"policy": 1.0}}


def test_gradients_are_evened_out_within_a_factor_of_ten():
    controller = GapController()
    _, weights, _ = controller.step(
        start(controller), seen(gradients={"policy": 1.0, "response": 0.5, "feature": 1e-4})
    )
    assert weights.scale == {"response": pytest.approx(2), "feature": 10.0}
    _, weights, _ = controller.step(start(controller), seen(gradients={"policy": None, "response": 0.5}))
    assert weights.scale == {}


def test_fixed_weights_are_fixed_and_teachers_are_shares():
    controller = FixedController(policy=0.2, response=0.7, feature=0.1, teachers={"a": 3.0, "b": 1.0})
    _, weights, events = controller.step(start(controller), seen(add=skill()))
    assert weights.signals["add"] == {"policy": 0.2, "response": 0.7, "feature": 0.1}
    assert weights.teachers["sort"] == {"a": 0.75, "b": 0.25}
    assert events == []


# -- properties ------------------------------------------------------------------------------------------------------


def gated(right: int, asked: int = 16, failing: float = 0.5, divergence: float | None = 0.3) -> TeacherObservation:
    """A teacher that answers `right` of `asked` prompts, of which the student fails a share."""
    attempts = 4 * right
    return TeacherObservation(divergence, 0, 0, True, asked, right, attempts, round(attempts * (1 - failing)))


def of(*teachers: TeacherObservation, p: float = 0.4, informative: float = 0.5) -> SkillObservation:
    named = dict(zip(TEACHERS, teachers, strict=False))
    return SkillObservation(40, round(40 * p), 10, round(10 * informative), named)


@pytest.mark.parametrize("controller", KINDS, ids=lambda c: c.kind)
@pytest.mark.parametrize(
    "news",
    [
        SkillObservation(),
        SkillObservation(40, 40, 10, 0, {}),
        SkillObservation(40, 0, 10, 0, {"a": TeacherObservation(math.nan), "b": TeacherObservation(math.inf)}),
        SkillObservation(0, 0, 10, 0, {"a": gated(0, 16), "b": TeacherObservation(None, 0, 0, False)}),
    ],
    ids=["nothing", "all right, no teacher", "all wrong, NaN", "no verdicts"],
)
@pytest.mark.parametrize("teachers", [[], TEACHERS], ids=["none", "two"])
def test_degenerate_news_gives_finite_weights(controller, news, teachers):
    signals: Any = list(SIGNALS) if teachers else ["policy"]
    state = controller.start(["add"], teachers, signals)
    for tick in range(50):
        state, weights, _ = controller.step(state, Observation(tick, {"add": news}, {"policy": math.nan}, 0.5))
        values = [*weights.signals["add"].values(), *weights.teachers["add"].values()]
        assert all(0 <= w <= 1 for w in values)
    json.dumps(state, allow_nan=False)


def walk(controller: Any, ticks: int, seed: int = 0) -> tuple[Any, list[Weights]]:
    """Ticks of random news."""
    rng, state, all_weights = random.Random(seed), start(controller), []
    for tick in range(ticks):
        news = {
            name: of(gated(rng.randrange(17)), gated(rng.randrange(17)), p=rng.random(), informative=rng.random())
            for name in SKILLS
        }
        state, weights, _ = controller.step(state, Observation(tick, news, {"policy": 1.0, "response": rng.random()}))
        all_weights.append(weights)
    return state, all_weights


@pytest.mark.parametrize("controller", KINDS, ids=lambda c: c.kind)
def test_a_state_through_json_goes_on_bit_for_bit(controller):
    state, _ = walk(controller, 30)
    again = json.loads(json.dumps(state))
    news = Observation(31, {name: of(gated(12), gated(3)) for name in SKILLS}, {}, 0.7)
    assert controller.step(again, news) == controller.step(state, news)


def test_gap_moves_signals_and_teachers_by_no_more_than_its_cap():
    controller = GapController(switch_off_useless=False, max_log_step=0.2)
    _, all_weights = walk(controller, 200)
    for before, after in itertools.pairwise(all_weights):
        for name in SKILLS:
            for one, two in ((before.signals, after.signals), (before.teachers, after.teachers)):
                steps = [math.log(two[name][key] / one[name][key]) for key in one[name]]
                assert max(steps) - min(steps) <= 2 * 0.2 + 1e-9  # each is within the cap, then all move alike
        assert sum(after.signals[name].values()) == pytest.approx(1)


def test_weights_do_not_depend_on_the_scale_of_a_gradient():
    news = {name: of(gated(12), gated(3)) for name in SKILLS}
    outcomes = []
    for factor in (1.0, 10.0):
        state = start(GapController())
        for tick in range(10):
            gradients = {"policy": 0.3, "response": 0.2 * factor, "feature": 0.1}
            state, weights, _ = GapController().step(state, Observation(tick, news, gradients))
        outcomes.append(weights)
    assert outcomes[0].signals == outcomes[1].signals
    assert outcomes[0].teachers == outcomes[1].teachers
    assert outcomes[0].scale["response"] == pytest.approx(10 * outcomes[1].scale["response"])


@pytest.mark.parametrize("asked", [0, 16], ids=["probed", "gated"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_more_competent_teacher_never_weighs_less(asked, data):
    rights = [data.draw(st.integers(0, 16)) for _ in range(2)]
    p, failing = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    last = 0.0
    for right in range(17):
        if asked:
            teachers = [replace(gated(r), attempts=40, successes=round(40 * (1 - failing))) for r in (right, rights[1])]
        else:
            teachers = [TeacherObservation(0.3, r, 16) for r in (right, rights[1])]
        _, weights, _ = run(GapController(switch_off_useless=False), 6, add=of(*teachers, p=p))
        assert weights.teachers["add"]["a"] >= last - 1e-12
        last = weights.teachers["add"]["a"]


def test_a_teacher_that_knows_more_gives_distillation_no_less_weight_and_a_useless_one_none():
    last = 0.0
    for right in range(17):
        _, weights, _ = run(GapController(switch_off_useless=False), 6, add=of(gated(right), gated(0), p=0.3))
        assert weights.signals["add"]["response"] >= last - 1e-12
        last = weights.signals["add"]["response"]
    news = of(gated(12), p=0.3)
    alone = GapController().start(["add"], ["a"], list(SIGNALS))
    beside = GapController().start(["add"], TEACHERS, list(SIGNALS))
    for tick in range(12):
        alone, without, _ = GapController().step(alone, seen(tick, add=news))
        beside, weights, _ = GapController().step(beside, seen(tick, add=of(gated(12), gated(0), p=0.3)))
    assert weights.signals["add"] == pytest.approx(without.signals["add"])
    assert weights.teachers["add"] == {"a": pytest.approx(1), "b": 0}


def test_names_and_their_order_do_not_matter():
    swapped = {"a": "b", "b": "a", "add": "sort", "sort": "add"}
    states = [start(GapController()), GapController().start(SKILLS[::-1], TEACHERS[::-1], list(SIGNALS))]
    rng = random.Random(3)
    for tick in range(60):
        news = {name: of(gated(rng.randrange(17)), gated(rng.randrange(17)), p=rng.random()) for name in SKILLS}
        other = {
            swapped[name]: replace(seen, teachers={swapped[t]: told for t, told in seen.teachers.items()})
            for name, seen in news.items()
        }
        outcomes = []
        for i, given_news in enumerate((news, other)):
            states[i], weights, _ = GapController().step(states[i], Observation(tick, given_news))
            outcomes.append(weights)
        for name in SKILLS:
            assert outcomes[0].signals[name] == pytest.approx(outcomes[1].signals[swapped[name]])
            for teacher in TEACHERS:
                mirrored = outcomes[1].teachers[swapped[name]][swapped[teacher]]
                assert outcomes[0].teachers[name][teacher] == pytest.approx(mirrored)


@pytest.mark.parametrize(("asked", "ticks"), [(16, 3), (8, 4), (4, 7), (2, 12)])
def test_a_gated_teacher_that_turns_bad_is_soon_off_and_back_within_three_ticks_of_turning_good(asked, ticks):
    controller, state = GapController(), start(GapController())
    steady = gated(asked, asked)
    for tick in range(30):
        state, weights, _ = controller.step(state, seen(tick, add=of(steady, steady)))
    assert weights.teachers["add"]["a"] > 0.4
    for tick in range(ticks):
        state, weights, _ = controller.step(state, seen(30 + tick, add=of(gated(0, asked), steady)))
    assert weights.teachers["add"]["a"] == 0
    for tick in range(3):
        state, weights, _ = controller.step(state, seen(50 + tick, add=of(gated(asked, asked, failing=0.8), steady)))
    assert weights.teachers["add"]["a"] > 0.05


@pytest.mark.parametrize(
    "told", [TeacherObservation(0.3, 8, 32), TeacherObservation(0.3, 0, 0, True, 2, 0), TeacherObservation(0.3)]
)
def test_a_student_that_was_never_seen_to_try_is_not_taken_to_be_better_than_a_teacher(told):
    weights = run(GapController(), 30, add=SkillObservation(0, 0, 10, 0, {"a": told}))[1]
    assert weights.signals["add"]["response"] > 0.8
    assert weights.teachers["add"]["a"] > 0.4


def test_sequential_without_reinforcement_to_end_with_is_refused():
    with pytest.raises(ControllerError, match="no policy signal"):
        SequentialController().start(SKILLS, TEACHERS, ["response"])


def test_a_teacher_that_nobody_verified_stays_off_while_nothing_is_heard_of_it():
    controller, state = GapController(), start(GapController())
    silent = SkillObservation(40, 20, 10, 5, {"a": TeacherObservation(None), "b": TeacherObservation(None)})
    level = SkillObservation(40, 20, 10, 5, {"a": TeacherObservation(0.001), "b": TeacherObservation(0.001)})
    for tick in range(4):
        state, weights, _ = controller.step(state, seen(tick, add=level))
    assert weights.signals["add"]["response"] == 0
    for tick in range(40):
        state, weights, events = controller.step(state, seen(tick, add=silent))
        assert not events
    assert weights.signals["add"]["response"] == 0


def test_noise_around_a_steady_worth_switches_nothing_in_two_thousand_ticks():
    rng, controller, state, events = random.Random(0), GapController(), start(GapController()), []
    for tick in range(2000):
        right = sum(rng.random() < 0.9 for _ in range(16))
        student = sum(rng.random() < 0.975 for _ in range(60))  # worth (1 - 0.975) / 0.2, between off and on
        observation = TeacherObservation(0.3, 0, 0, True, 16, right, 60, student)
        state, _, news = controller.step(state, seen(tick, add=of(observation, informative=rng.uniform(0.07, 0.13))))
        events += [e for e in news if e.about in ("a", "response")]
    assert events == []


def test_a_skill_that_is_not_asked_keeps_its_weights_and_then_starts_anew():
    controller = GapController()
    state, before, _ = run(controller, 8, add=skill(p=0.99, informative=0.1))
    for tick in range(19):
        state, weights, events = controller.step(state, seen(tick))
        assert weights.signals["add"] == before.signals["add"]
    state, weights, events = controller.step(state, seen(20))
    assert [(e.kind, e.skill) for e in events] == [("skill forgotten", "add")]
    assert weights.signals["add"] == controller.weights(start(controller)).signals["add"]


def test_a_teacher_that_alone_is_right_on_a_few_prompts_stays_until_they_are_learnt():
    """The gate leaves it these prompts alone, so that another one is right far more often is no reason to drop it."""
    controller, state = GapController(), start(GapController())
    few = TeacherObservation(0.5, 0, 0, True, 40, 10, 40, 0)
    for tick in range(60):
        state, weights, _ = controller.step(state, seen(tick, add=of(gated(14, failing=0.0), few, informative=0.0)))
    assert weights.teachers["add"]["b"] > 0.9
    assert weights.signals["add"]["response"] > 0.5


@pytest.mark.parametrize("asked", [2, 4, 8])
def test_a_teacher_that_is_off_is_back_after_one_look_that_finds_it_right(asked):
    """While it is off it is looked at once in 20 ticks, and asked a few prompts then."""
    controller, state = GapController(), start(GapController())
    for tick in range(20):
        state, weights, _ = controller.step(state, seen(tick, add=of(gated(0), gated(14))))
    assert weights.teachers["add"]["a"] == 0
    for tick in range(20, 39):
        state, weights, _ = controller.step(state, seen(tick, add=of(TeacherObservation(None), gated(14))))
    look = TeacherObservation(0.5, 0, 0, True, asked, asked, 4 * asked, 0)
    state, _, _ = controller.step(state, seen(39, add=of(look, gated(14))))
    for tick in range(40, 43):
        state, weights, _ = controller.step(state, seen(tick, add=of(TeacherObservation(None), gated(14))))
    assert weights.teachers["add"]["a"] > 0.01


@pytest.mark.parametrize("asked", [2, 8])
def test_a_teacher_that_is_off_and_still_wrong_stays_off_when_it_is_looked_at(asked):
    controller, state = GapController(), start(GapController())
    for tick in range(200):
        looked_at = tick < 20 or tick % 20 == 19
        observation = TeacherObservation(0.3, 0, 0, True, asked, 0, 0, 0) if looked_at else TeacherObservation(None)
        state, weights, events = controller.step(state, seen(tick, add=of(observation, gated(14))))
        assert tick < 20 or not [event for event in events if event.about == "a"]
    assert weights.teachers["add"]["a"] == 0


def test_a_teacher_around_the_least_cover_does_not_flap():
    rng, controller, state, events = random.Random(0), GapController(), start(GapController()), []
    for tick in range(2000):
        right = sum(rng.random() < 0.12 for _ in range(16))
        observation = TeacherObservation(0.3, 0, 0, True, 16, right, 4 * right, right)
        state, _, news = controller.step(
            state, seen(tick, add=of(observation, TeacherObservation(None, teaches=False)))
        )
        events += [e for e in news if e.about in ("a", "response")]
    assert len(events) <= 8


def test_where_the_verifier_has_no_say_teachers_count_as_without_one():
    """All answers pass then, and no attempt of the student's counts."""
    controller, state = GapController(), start(GapController())
    open_to_all = TeacherObservation(1e-4, 0, 0, True, 16, 16, 0, 0)
    for tick in range(40):
        news = SkillObservation(0, 0, 10, 0, {"a": open_to_all, "b": open_to_all})
        state, weights, _ = controller.step(state, seen(tick, add=news))
    assert weights.signals["add"]["response"] == 0  # it says what the student says
    assert weights.allocation is not None
    assert weights.allocation["add"] > 0.1


def test_a_skill_that_is_not_asked_any_more_has_no_claim_on_the_prompts():
    controller, state = GapController(), start(GapController())
    for tick in range(60):
        news = {"add": skill()} | ({"sort": skill()} if tick < 10 else {})
        state, weights, _ = controller.step(state, seen(tick, **news))
    assert weights.allocation == pytest.approx({"add": 0.9, "sort": 0.1}, abs=0.01)


def test_a_skill_whose_prompts_all_have_gold_answers_keeps_its_claim():
    controller, state = GapController(), start(GapController())
    for tick in range(60):
        news = {"add": skill(p=0.5), "sort": skill(p=0.5) if tick < 10 else SkillObservation(gold_answers=8)}
        state, weights, events = controller.step(state, seen(tick, **news))
        assert "skill forgotten" not in [event.kind for event in events]
    assert weights.allocation is not None
    assert weights.allocation["sort"] > 0.4


def test_a_prior_for_one_signal_leaves_the_others_as_they_are():
    weights = GapController(prior={"policy": 2.0})
    shares = weights.weights(start(weights)).signals["add"]
    assert shares == pytest.approx({"policy": 2 / 3.1, "response": 1 / 3.1, "feature": 0.1 / 3.1})


# -- layers of gap ---------------------------------------------------------------------------------------------------


def test_each_layer_can_be_switched_off_alone():
    bad = {"add": of(gated(0), gated(16))}
    assert run(GapController(), 5, **bad)[1].teachers["add"]["a"] == 0
    assert run(GapController(switch_off_useless=False), 5, **bad)[1].teachers["add"]["a"] > 0
    blind = GapController(use_gate_counts=False)
    assert run(blind, 5, **bad)[1].teachers["add"] == {"a": 0.5, "b": 0.5}
    held = run(GapController(fixed_policy_weight=0.2), 30, **bad)[1]
    assert held.signals["add"] == pytest.approx({"policy": 0.2, "response": 0.8 / 1.1, "feature": 0.08 / 1.1})
    assert held.teachers["add"]["a"] == 0, "teachers still move"
    assert run(GapController(fixed_policy_weight=0.0), 3, **bad)[1].signals["add"]["policy"] == 0
    assert run(GapController(allocate=False), 3, **bad)[1].allocation is None
    assert run(GapController(balance_gradients=False), 3, **bad)[1].scale == {}


def test_prompts_go_to_the_skills_that_can_still_learn():
    mastered = SkillObservation(40, 40, 10, 0, {})
    _, weights, _ = run(GapController(), 30, add=mastered, sort=of(gated(16, failing=0.9), gated(0), p=0.1))
    assert weights.allocation["add"] < 0.15
    assert sum(weights.allocation.values()) == pytest.approx(1)


def test_a_skill_that_never_moves_gets_fewer_prompts():
    """That its share of right answers wavers as chance has it is no movement."""
    state, chance = start(GapController()), random.Random(0)
    for tick in range(40):
        right = sum(chance.random() < 0.1 for _ in range(40))
        stuck = SkillObservation(40, right, 10, 6, {"a": gated(0), "b": gated(0)})
        learns = SkillObservation(40, min(4 + tick // 2, 40), 10, 6, {"a": gated(16, failing=0.5), "b": gated(0)})
        state, weights, _ = GapController().step(state, seen(tick, add=stuck, sort=learns))
    assert weights.allocation["add"] < 0.3


def test_prompts_go_where_more_is_wrong_though_only_gold_answers_teach():
    """Of each skill one group in sixteen is sampled, in which all completions got the same reward."""
    half = SkillObservation(4, 2, 1, 0, {}, gold_answers=60)
    most = replace(half, successes=0)
    _, weights, _ = run(GapController(), 200, add=half, sort=most)
    assert weights.allocation == pytest.approx({"add": 0.38, "sort": 0.62}, abs=0.03)
    _, weights, _ = run(GapController(), 5, add=half, sort=most)
    assert weights.allocation == pytest.approx({"add": 0.5, "sort": 0.5}, abs=0.02), "few completions show little"
    _, weights, _ = run(GapController(), 200, add=half, sort=replace(most, gold_answers=0))
    assert weights.allocation == pytest.approx({"add": 0.9, "sort": 0.1}, abs=0.01), "nothing teaches it"


def test_prompts_go_where_more_is_wrong_though_all_are_worth_teaching():
    half, most = of(gated(16, failing=0.5), gated(0), p=0.5), of(gated(16, failing=0.9), gated(0), p=0.1)
    _, weights, _ = run(GapController(), 15, add=half, sort=most)
    assert weights.allocation == pytest.approx({"add": 0.38, "sort": 0.62}, abs=0.03)


# -- baselines -------------------------------------------------------------------------------------------------------


def test_fixed_weights_by_skill_name_every_skill():
    controller = FixedController(policy={"add": 0.2, "sort": 0.9}, teachers={"a": {"add": 1, "sort": 0}})
    weights = controller.weights(start(controller))
    assert (weights.signals["add"]["policy"], weights.signals["sort"]["policy"]) == (0.2, 0.9)
    assert weights.teachers == {"add": {"a": 0.5, "b": 0.5}, "sort": {"a": 0, "b": 1}}
    with pytest.raises(ControllerError, match=r"controller.policy has no value for skill 'sort'"):
        start(FixedController(policy={"add": 0.2}))
    with pytest.raises(ControllerError, match=r"controller.policy: 'srot' is no skill; did you mean 'sort'\?"):
        start(FixedController(policy={"add": 0.2, "sort": 0.1, "srot": 0.1}))


def test_a_share_of_a_teacher_that_is_not_there_is_refused():
    controller = FixedController(teachers={"adderr": 2.0})
    with pytest.raises(ControllerError, match=r"controller.teachers.adderr: no such teacher; did you mean 'adder'\?"):
        controller.start(["add"], ["adder"], ["response"])
    controller.for_teachers(["adder"]).start(
        ["add"], ["adder"], ["response"]
    )  # which the recipe has, and which is down


@pytest.mark.parametrize(
    ("shape", "half", "late"),
    [("linear", 0.3, 0.5), ("cosine", 0.3, 0.5), ("step", 0.1, 0.5), ("exponential", math.sqrt(0.05), 0.5)],
)
def test_a_course_goes_from_start_to_end(shape, half, late):
    course = WeightSchedule(start=0.1, end={"add": 0.5, "sort": 0.1}, shape=shape, over=0.8)
    assert [course.value(t, "add") for t in (0, 0.4, 0.8, 1)] == pytest.approx([0.1, half, late, late])
    assert course.value(0.5, "sort") == pytest.approx(0.1)


def test_a_course_written_in_floats_is_a_course():
    given = ScheduleController.model_validate(
        {"policy": {"start": 0.0, "end": 1.0, "over": 0.5}, "response": {"start": 1.0, "end": 0.5}}
    )
    assert (given.policy, given.response) == (
        WeightSchedule(start=0, end=1, over=0.5),
        WeightSchedule(start=1, end=0.5),
    )
    start(given)


def test_a_schedule_takes_what_stays_by_skill():
    given = ScheduleController(policy={"add": 0.2, "sort": 0.6}, response=0.5, feature=0)
    weights = given.weights(start(given)).signals
    assert weights == {"add": {"policy": 0.2, "response": 0.5, "feature": 0}, "sort": {**weights["add"], "policy": 0.6}}
    with pytest.raises(ControllerError, match="has no value for skill 'sort'"):
        start(ScheduleController(policy={"add": 0.2}))


def test_a_schedule_follows_the_share_of_steps_that_are_done():
    controller = ScheduleController(response=0.3)
    state = start(controller)
    assert controller.weights(state).signals["add"] == {"policy": 0, "response": 0.3, "feature": 0.25}
    _, weights, _ = controller.step(state, Observation(50, {}, {}, 0.5))
    assert weights.signals["add"] == {"policy": 0.5, "response": 0.3, "feature": 0.125}
    with pytest.raises(ValueError, match="above 0"):
        WeightSchedule(start=0.0, end=1.0, shape="exponential")


@pytest.mark.parametrize("together", [False, True])
def test_sequential_reinforces_once_success_no_longer_rises(together):
    controller = SequentialController(patience_ticks=3, together=together)
    state, changed = start(controller), {}
    for tick in range(40):
        rising = skill(p=min(0.05 * tick, 1.0))
        level = skill(p=0.3 if tick > 5 else 0.0)
        state, weights, events = controller.step(state, seen(tick, add=rising, sort=level))
        changed |= {event.skill: tick for event in events}
    assert weights.signals["add"] == {"policy": 1, "response": 0, "feature": 0}
    if together:
        assert list(changed) == ["all skills"]
    else:
        assert changed["sort"] < 16 < 20 < changed["add"]


def test_random_weights_depend_on_seed_tick_and_skill_alone():
    one, two = run(RandomController(seed=1), 3)[1], run(RandomController(seed=1), 3)[1]
    assert one == two != run(RandomController(seed=2), 3)[1]
    assert one != run(RandomController(seed=1), 4)[1]
    assert one.signals["add"] != one.signals["sort"]
    assert sum(one.signals["add"].values()) == pytest.approx(1)
