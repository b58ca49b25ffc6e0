"""The share of prompts whose gold answers are learnt follows how often the student fails."""

from __future__ import annotations

import json

import pytest

from rld.controllers.baselines import FixedController
from rld.controllers.gap import GapController
from rld.controllers.gold_share import GoldShareController
from rld.controllers.observation import Observation, SkillObservation


def observed(successes: int, attempts: int = 20) -> Observation:
    measured = {"add": SkillObservation(attempts=attempts, successes=successes), "sort": SkillObservation()}
    return Observation(1, measured)


def shares(controller: GoldShareController, successes: int, ticks: int = 60) -> dict[str, float]:
    state = controller.start(["add", "sort"], [], ["policy"])
    for _ in range(ticks):
        state, weights, _ = controller.step(json.loads(json.dumps(state)), observed(successes))
    return dict(weights.gold_share)


@pytest.mark.parametrize(("successes", "share"), [(0, 7 / 8), (5, 0.75), (15, 0.25), (20, 0.0)])
def test_it_is_the_failure_rate_within_its_limit(successes, share):
    after = shares(GoldShareController(FixedController()), successes)
    assert after["add"] == pytest.approx(share, abs=0.01)
    assert after["sort"] == 0.5, "a skill without attempts keeps the prior"


def test_a_fixed_share_stays():
    assert shares(GoldShareController(FixedController(), 0.3), 20) == {"add": 0.3, "sort": 0.3}


def test_four_passes_over_the_rows_are_learnt_at_most():
    controller = GoldShareController(FixedController(), num_rows={"add": 10})
    state = controller.start(["add", "sort"], [], ["policy"])
    measured = SkillObservation(attempts=4, successes=0, gold_answers=13)
    for tick, share in ((1, 0.8), (2, 0.8), (3, 0.8), (4, 0.0)):
        state, weights, events = controller.step(state, Observation(tick, {"add": measured, "sort": measured}))
        assert (weights.gold_share["add"] >= share) if share else (weights.gold_share["add"] == 0)
        assert [event.kind for event in events] == ["gold answers learnt"] * (tick == 4)
    assert weights.gold_share["sort"] > 0.8, "a generator's rows have no end"


def test_an_answer_that_several_iterations_learn_counts_several_times():
    controller = GoldShareController(FixedController(), num_rows={"add": 10}, num_iterations=2)
    state = controller.start(["add", "sort"], [], ["policy"])
    measured = SkillObservation(attempts=4, successes=0, gold_answers=13)
    for share in (True, False):
        state, weights, _ = controller.step(state, Observation(1, {"add": measured, "sort": measured}))
        assert (weights.gold_share["add"] > 0) == share


def test_the_other_controller_decides_as_without_it():
    alone, beside = GapController(), GoldShareController(GapController())
    state, other = (made.start(["add", "sort"], ["one"], ["policy", "response"]) for made in (alone, beside))
    for successes in (0, 5, 20):
        state, weights, events = alone.step(state, observed(successes))
        other, more, more_events = beside.step(other, observed(successes))
        assert more.signals == weights.signals and more.teachers == weights.teachers and more_events == events
    assert beside.resume(other, ["two"])["teachers"] == ["two"]
