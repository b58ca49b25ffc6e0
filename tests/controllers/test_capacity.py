"""What counts as a capacity gap, and what is done about it, without training."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rld.controllers.base import State
from rld.controllers.baselines import FixedController, RandomController, ScheduleController, SequentialController
from rld.controllers.capacity import CapacityMonitor, CapacityRule
from rld.controllers.gap import GapController
from rld.controllers.observation import Observation, SkillObservation, TeacherObservation, Weights
from rld.recipe.stages.distill import Distill
from rld.types import Event

TICKS = 100


def monitor(**options) -> CapacityMonitor:
    fixed = FixedController(policy=0.2, response=0.6, feature=0.2)
    return CapacityMonitor(fixed, CapacityRule(**{"window": 10, **options}))


def tick(
    rng: random.Random,
    success: float,
    divergence: float,
    teacher: float = 0.95,
    level: float = 0.0,
    sampled: bool = True,
) -> SkillObservation:
    """What 16 prompts with 4 completions each measure."""
    right = sum(rng.random() < success for _ in range(64))
    correct = sum(rng.random() < teacher for _ in range(16))
    observed = TeacherObservation(
        divergence=divergence * rng.uniform(0.9, 1.1),
        prompts=16,
        correct=correct,
        attempts=4 * correct,
        successes=round(right * correct / 16),
        resampled=correct if sampled else 0,
        resampled_correct=sum(rng.random() < teacher for _ in range(correct)) if sampled else 0,
    )
    return SkillObservation(
        attempts=64, successes=right, teachers={"big": observed}, level=level + rng.uniform(-0.1, 0.1)
    )


def run(made: CapacityMonitor, world, ticks: int = TICKS, seed: int = 0) -> tuple[State, list[Event], list[Weights]]:
    """Feed what `world(rng, t)` measures to a monitor, through JSON at each tick."""
    rng, state = random.Random(seed), made.start(["add"], ["big"], ["policy", "response", "feature"])
    events, weights = [], []
    for t in range(ticks):
        state, now, more = made.step(state, Observation(t + 1, {"add": world(rng, t)}, progress=(t + 1) / ticks))
        state = json.loads(json.dumps(state))
        assert made.weights(state) == now
        events, weights = events + more, [*weights, now]
    return state, events, weights


def too_small(rng: random.Random, t: int) -> SkillObservation:
    return tick(rng, 0.4, 0.5)


def still_learning(rng: random.Random, t: int) -> SkillObservation:
    return tick(rng, 0.2 + 0.7 * t / TICKS, 0.6 * (1 - t / TICKS))


def test_a_student_that_stands_still_behind_a_better_teacher_is_told_of_once_with_the_figures():
    _, (event,), _ = run(monitor(), too_small)
    assert (event.kind, event.skill, event.about) == ("capacity gap", "add", "big")
    assert 20 <= event.step <= 30
    figure = r"0\.\d+ to 0\.\d+ ± 0\.\d+"
    match = re.search(
        rf"big went from {figure} nats per token and success from {figure}; .* lead is (.*) ± 0", event.measured
    )
    assert match is not None, event.measured
    assert float(match[1]) == pytest.approx(0.55, abs=0.06)
    assert "a size between the two" in event.rule


@pytest.mark.parametrize(
    "world",
    [
        still_learning,
        lambda rng, t: tick(rng, 0.95, 0.3),  # as good as its teacher, in its own way
        lambda rng, t: tick(rng, 0.7, 0.005, teacher=0.72),  # the teacher's distribution
        lambda rng, t: tick(rng, 0.4, 0.5, teacher=0.3),  # the teacher is worse
        lambda rng, t: tick(rng, 0.5, 0.5, level=t / 20),  # a curriculum makes it harder all the time
        lambda rng, t: tick(rng, 0.4, 0.5 * 0.97**t),  # comes closer, though success does not show it
        lambda rng, t: SkillObservation(),  # is not practised
    ],
)
def test_others_are_not(world):
    for seed in range(5):
        _, events, _ = run(monitor(), world, seed=seed)
        assert events == []


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_nothing_is_said_of_a_student_that_learns_whatever_the_noise(seed):
    assert run(monitor(), still_learning, 60, seed)[1] == []


def test_a_gap_that_closes_is_told_of_too():
    def world(rng: random.Random, t: int) -> SkillObservation:
        return (
            too_small(rng, t) if t < 50 else tick(rng, min(0.4 + 0.02 * (t - 50), 0.95), max(0.5 - 0.01 * (t - 50), 0))
        )

    _, events, _ = run(monitor(), world)
    assert [event.kind for event in events] == ["capacity gap", "capacity gap closed"]
    assert events[1].step > 50


def test_without_sampled_answers_the_gates_or_the_probes_count():
    _, (event,), _ = run(monitor(), lambda rng, t: tick(rng, 0.4, 0.5, sampled=False))
    assert re.search("lead is 0.5[0-9] ±", event.measured)
    probed = TeacherObservation(divergence=0.5, probe_correct=30, probe_size=32)
    noise = random.Random(1)

    def world(rng: random.Random, t: int) -> SkillObservation:
        return SkillObservation(attempts=64, successes=25 + noise.randrange(3), teachers={"big": probed})

    assert [event.kind for event in run(monitor(), world)[1]] == ["capacity gap"]


def test_soften_starts_near_the_student_and_returns_to_the_teacher():
    _, (event,), weights = run(monitor(act="soften"), too_small)
    shares = [w.teacher_share.get("add", 1.0) for w in weights]
    assert set(shares[: event.step - 1]) == {1.0}
    assert shares[event.step - 1] == pytest.approx(0.4)
    assert shares[event.step - 1 :] == sorted(shares[event.step - 1 :])
    assert shares[-1] == pytest.approx(1.0)
    assert weights[-1].signals == weights[0].signals


def test_reinforce_moves_half_of_the_distillation_to_the_policy_while_the_gap_lasts():
    def world(rng: random.Random, t: int) -> SkillObservation:
        return too_small(rng, t) if t < 60 else tick(rng, 0.95, 0.3)

    _, (on, off), weights = run(monitor(act="reinforce"), world)
    before, during = weights[on.step - 2].signals["add"], weights[on.step - 1].signals["add"]
    assert before == {"policy": 0.2, "response": 0.6, "feature": 0.2}
    assert during == pytest.approx({"policy": 0.6, "response": 0.3, "feature": 0.1})
    assert weights[off.step - 1].signals["add"] == before
    assert all(w.teacher_share == {} for w in weights)


def test_another_teacher_starts_the_history_anew():
    made = monitor()
    state, events, _ = run(made, too_small, 19)
    assert events == []
    state = made.resume(state, ["other"])
    rng = random.Random(0)
    for t in range(19):
        measured = tick(rng, 0.4, 0.5)
        other = SkillObservation(measured.attempts, measured.successes, teachers={"other": measured.teachers["big"]})
        state, _, events = made.step(state, Observation(20 + t, {"add": other}, progress=0.5))
        assert events == []
    assert state["capacity"]["skills"]["add"]["teacher"] == "other"


def test_a_tick_in_which_the_teacher_is_wrong_on_all_prompts_is_left_out():
    """With few prompts of a skill that is common, and others are measured then."""

    def world(rng: random.Random, t: int) -> SkillObservation:
        measured = too_small(rng, t)
        big = TeacherObservation(prompts=1) if t % 4 == 3 else measured.teachers["big"]
        teachers = {"big": big, "weak": TeacherObservation(divergence=0.7, prompts=16, correct=1)}
        return replace(measured, teachers=teachers)

    _, (event,), _ = run(monitor(), world)
    assert (event.kind, event.about) == ("capacity gap", "big")
    assert 26 <= event.step <= 40


def test_replaced_prompts_are_refused():
    """Those that stay are answered correctly about half of the time, whatever the student can."""
    teachers = {"big": {"model": "large"}}
    stage = {"kind": "distill", "name": "x", "student": "small", "steps": 1, "teachers": teachers, "capacity": {}}
    Distill.model_validate(stage)
    with pytest.raises(ValueError, match=r"rollout\.refill leaves those out"):
        Distill.model_validate({**stage, "rollout": {"refill": 1}})


def test_a_gap_to_a_teacher_that_leaves_closes_with_an_event():
    def world(rng: random.Random, t: int) -> SkillObservation:
        measured = too_small(rng, t)
        return measured if t < 40 else replace(measured, teachers={"other": measured.teachers["big"]})

    _, events, weights = run(monitor(act="reinforce"), world, 50)
    assert [(event.kind, event.about) for event in events] == [("capacity gap", "big"), ("capacity gap closed", "big")]
    assert events[1].step == 41
    assert "does not teach the skill any more" in events[1].rule
    assert weights[39].signals["add"] != weights[40].signals["add"] == weights[0].signals["add"]


@pytest.mark.parametrize(
    "inner",
    [GapController(), ScheduleController(response={"start": 1, "end": 0}), SequentialController(), RandomController()],
    ids=lambda inner: inner.kind,
)
def test_any_controller_decides_beside_the_monitor_as_it_does_alone(inner):
    made, rng = CapacityMonitor(inner, CapacityRule(window=4)), random.Random(0)
    start = ["add"], ["big"], ["policy", "response", "feature"]
    state, alone = made.start(*start), inner.start(*start)
    for t in range(20):
        seen = Observation(t + 1, {"add": still_learning(rng, t)}, progress=(t + 1) / 20)
        state, weights, _ = made.step(json.loads(json.dumps(state)), seen)
        alone, expected, _ = inner.step(alone, seen)
        assert weights == expected == made.weights(state)
