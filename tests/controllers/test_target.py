"""Shares of the prompts follow the transfer to the target, without training."""

from __future__ import annotations

import json
import random

import pytest

from rld.controllers.baselines import FixedController
from rld.controllers.observation import Observation, SkillObservation
from rld.controllers.target import TargetedController

SKILLS = ["goal", "near", "far", "against"]


def run(transfer, ticks: int = 40):
    made = TargetedController(FixedController(policy=0, response=1, feature=0), ("goal",))
    state, events, shares = made.start(SKILLS, ["big"], ["response"]), [], []
    for t in range(ticks):
        skills = {skill: SkillObservation(transfer=transfer(skill, t)) for skill in SKILLS}
        state, weights, more = made.step(state, Observation(t + 1, skills))
        state = json.loads(json.dumps(state))
        assert made.weights(state) == weights
        assert sum(weights.allocation.values()) == pytest.approx(1)
        events, shares = events + more, [*shares, weights.allocation]
    return shares, events


def test_what_agrees_with_the_target_gets_the_prompts_and_what_is_against_it_hardly_any():
    shares, (event,) = run(lambda skill, t: {"goal": 0.6, "near": 0.3, "far": 0.0, "against": -0.4}[skill])
    assert shares[0]["goal"] < shares[5]["goal"] < 0.65, "it takes some ticks"
    assert shares[-1] == pytest.approx({"goal": 0.6458, "near": 0.3292, "far": 0.0125, "against": 0.0125}, abs=1e-3)
    assert (event.kind, event.skill, event.about, event.step) == ("transfer off", "against", "goal", 1)
    assert "cosine of -0.4" in event.measured


def test_a_skill_can_help_again_and_noise_around_0_is_told_of_once():
    _, events = run(lambda skill, t: (-0.3 if t < 10 else 0.4) if skill == "near" else 0.3)
    assert [(e.kind, e.skill) for e in events] == [("transfer off", "near"), ("transfer on", "near")]
    _, events = run(lambda skill, t: 0.02 * (-1) ** t if skill == "near" else 0.3)
    assert len(events) <= 1


def test_where_nothing_helps_the_target_itself_is_practised():
    shares, _ = run(lambda skill, t: -0.1)
    assert shares[-1]["goal"] == pytest.approx(0.9625, abs=1e-3)


def test_before_anything_is_measured_all_are_alike():
    shares, events = run(lambda skill, t: None)
    assert shares[-1] == dict.fromkeys(SKILLS, 0.25)
    assert events == []


@pytest.mark.parametrize("seed", range(5))
def test_every_skill_keeps_its_part_of_what_is_split_evenly(seed):
    rng = random.Random(seed)
    shares, _ = run(lambda skill, t: rng.uniform(-1, 1), ticks=20)
    assert min(share for at in shares for share in at.values()) >= 0.0125
