"""The runtime between measured sums and a controller."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rld.controllers.baselines import FixedController, ScheduleController, WeightSchedule
from rld.controllers.capacity import CapacityMonitor, CapacityRule
from rld.controllers.gap import GapController
from rld.controllers.gold_share import GoldShareController
from rld.controllers.observation import TeacherInfo, Weights
from rld.controllers.runtime import ControllerRuntime
from rld.controllers.statistics import AttemptCounts
from rld.controllers.target import TargetedController
from rld.errors import ControllerError
from rld.trainer.checkpoints import VERSION
from rld.utils.flops import SourceFlops
from tests.support.update_statistics import statistics

RULE = CapacityRule()
_ROWS = [[8.0, 8.0], [1.0, 8.0], [2.0, 2.0], [1.0, 0.0], [0.0, 4.0], [0.0, 0.0], [8.0, 8.0], *[[0.0, 0.0]] * 2]
ATTEMPTS = AttemptCounts(*torch.tensor(_ROWS, dtype=torch.float64))
"""8 attempts at each of two skills, with 1 and 8 successes, in 2 groups, of which 1 and none are informative."""


def runtime(controller=None, **changes) -> ControllerRuntime:
    teachers = [TeacherInfo("a", **changes), TeacherInfo("b")]
    return ControllerRuntime(
        controller or GapController(decide_every=2, recheck_every=3),
        ["add", "sort"],
        teachers,
        ["policy", "response"],
    )


def test_the_root_mean_square_follows_delta_and_weights_change_only_at_ticks():
    made = runtime()
    assert made.delta_rms_S().tolist() == [1.0, 1.0]
    before = made.weights
    made.add_attempt_counts(ATTEMPTS)
    made.finish_update(statistics(), 1)
    assert made.delta_rms_S().tolist() == [3.0, 3.0]  # unmeasured: as large as the others
    assert made.weights == before
    metrics, _ = made.finish_update(statistics(), 2)
    assert made.weights != before
    assert metrics["progress/add"] == 1 / 8
    assert metrics["phase/add"] == 0
    assert metrics["divergence/a"] == pytest.approx(0.2)


def test_what_any_controller_turns_off_is_an_event():
    made = runtime(
        ScheduleController(
            decide_every=1, policy=1.0, response=WeightSchedule(start=0.5, end=0.0, over=0.5, shape="step")
        )
    )
    events = []
    for step in range(1, 5):
        events += made.finish_update(statistics(), step, step / 4)[1]
    offs = [(event.step, event.kind, event.skill, event.about) for event in events if event.kind != "phase"]
    assert offs == [(2, "signal off", "add", "response"), (2, "signal off", "sort", "response")]
    assert events[0].measured == "its weight was 0.5 and is 0"


def test_only_needed_teachers_are_wanted_and_all_at_a_heartbeat():
    made = runtime(FixedController(response=0.0, policy=1.0, decide_every=1, recheck_every=3), skills=("add",))
    table, none = torch.tensor([[True, True], [False, True]]), torch.zeros(2, 2, dtype=torch.bool)
    made.add_attempt_counts(AttemptCounts.zeros(2, 2))
    assert torch.equal(made.teachers_needed(0.0, made.teachers_SK), table)  # the first look
    made.finish_update(statistics(), 1)
    made.add_attempt_counts(AttemptCounts.zeros(2, 2))
    assert torch.equal(made.teachers_needed(0.0, made.teachers_SK), none)
    assert torch.equal(made.teachers_needed(0.1, made.teachers_SK), table)  # the teacher-scored reward needs them
    for step in (2, 3, 4):
        made.finish_update(statistics(), step)
    assert torch.equal(made.teachers_needed(0.0, made.teachers_SK), none)  # due, but the rollout is still the old one
    made.add_attempt_counts(AttemptCounts.zeros(2, 2))
    assert torch.equal(made.teachers_needed(0.0, made.teachers_SK), table)


def test_a_teacher_outside_its_skills_has_no_share():
    assert runtime(FixedController(), skills=("add",)).teachers_SK.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_a_controller_that_gives_no_number_is_refused():
    class Wild(FixedController):
        def weights(self, state):
            return Weights({"add": {"policy": math.nan}, "sort": {}}, {"add": {}, "sort": {}})

    class Forgetful(FixedController):
        def weights(self, state):
            return Weights({"add": {}}, {"add": {}})

    with pytest.raises(ControllerError, match="Wild gave a weight"):
        runtime(Wild())
    with pytest.raises(ControllerError, match="Forgetful gave no weights for skill 'sort'"):
        runtime(Forgetful())


def test_a_student_that_learns_nothing_is_told_of_once():
    with pytest.warns(UserWarning, match="learns nothing") as told:
        made = runtime(FixedController(policy=0, response=0, decide_every=1))
        made.finish_update(statistics(), 1)
    assert len(told) == 1


def test_a_saved_state_goes_on_the_same():
    one, two = runtime(), runtime()
    one.add_attempt_counts(ATTEMPTS)
    one.finish_update(statistics(), 1)
    two.load_state_dict(one.state_dict())
    for made in (one, two):
        made.finish_update(statistics(0.01), 2)
    assert one.state_dict() == two.state_dict()


def test_the_version_of_checkpoints_is_that_of_the_parts_of_a_state():
    made = runtime(GoldShareController(GapController()))
    parts = sorted(set(_paths(json.loads(json.dumps(made.state_dict())))))
    message = "a run can't be resumed from a checkpoint without a part: raise VERSION, and put both numbers here"
    assert (VERSION, zlib.crc32("\n".join(parts).encode())) == (20, 1646209451), message


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the names of the parts of a state, and of their parts."""
    for name, part in value.items() if isinstance(value, dict) else ():
        yield f"{path}/{name}"
        yield from _paths(part, f"{path}/{name}")


def test_a_state_with_another_part_of_the_controller_is_refused():
    plain = GapController()
    for other in (GoldShareController(plain), TargetedController(plain, ("add",)), CapacityMonitor(plain, RULE)):
        for saved, current in ((plain, other), (other, plain)):
            with pytest.raises(ControllerError, match=f"both have {other.STATE_KEY}.*start anew"):
                runtime(current).load_state_dict(runtime(saved).state_dict())


def test_a_controller_is_shown_the_operations_since_the_last_tick_after_a_resume_too(monkeypatch):
    made, shown = runtime(), list[SourceFlops]()
    step = GapController.step
    monkeypatch.setattr(GapController, "step", lambda *args: (shown.append(args[2].flops), step(*args))[1])
    for update in (1, 2, 3):
        made.set_flops(SourceFlops(sampled=10.0 * update, gold=float(update)))
        made.finish_update(statistics(), update)
    resumed = runtime()
    resumed.load_state_dict(json.loads(json.dumps(made.state_dict())))
    resumed.set_flops(SourceFlops(sampled=50.0, gold=5.0))
    resumed.finish_update(statistics(), 4)
    assert shown == [(20.0, 2.0), (30.0, 3.0)]
