"""A reward that pays for what is wrong: seen by an audit, and no longer followed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import tests.support.tiny as tiny
from rld.controllers.gap import GapController
from rld.controllers.observation import Observation, SkillObservation, TeacherObservation
from rld.controllers.statistics import AuditCounts
from rld.errors import RecipeError
from rld.rollout.audit import RewardAudit
from rld.rollout.record import RolloutRecord
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer


def tick(
    controller: GapController, state: Any, paid: float, genuine: float | None, step: int = 0, teacher: bool = True
) -> Any:
    """One tick of 200 attempts, a share `paid` of which are paid; of a tenth of those a share `genuine` is right."""
    audited = 0 if genuine is None else round(20 * paid)
    right = 0 if genuine is None else round(audited * genuine)
    observation = TeacherObservation(0.2, 30, 32, True, 25, 24, 192, round(192 * paid))
    teachers = {"a": observation} if teacher else {}
    seen = SkillObservation(200, round(200 * paid), 25, 15, teachers, audited=audited, audit_passed=right)
    return controller.step(state, Observation(step, {"add": seen}))


def start(controller: GapController, teacher: bool = True) -> Any:
    signals: Any = ["policy", "response"] if teacher else ["policy"]
    return controller.start(["add"], ["a"] if teacher else [], signals)


def distrusted(controller: GapController, ticks: int, paid: float, genuine: float) -> Any:
    """The state of a skill without a teacher, whose reward has lost all its weight by then."""
    state = start(controller, teacher=False)
    for step in range(ticks):
        state, weights, _ = tick(controller, state, paid, genuine, step, teacher=False)
    assert weights.signals["add"] == {"policy": 0.0}
    return state


def test_a_hacked_reward_loses_its_weight_within_fifteen_ticks_and_the_teacher_takes_over():
    controller = GapController()
    state = start(controller)
    for step in range(30):
        state, weights, _ = tick(controller, state, 0.85, 1.0, step)
    assert weights.signals["add"]["policy"] > 0.3
    kinds = []
    for step in range(15):
        state, weights, events = tick(controller, state, 0.95, 0.1, step)  # it pays for nearly all, and most is wrong
        kinds += [event.kind for event in events]
    assert weights.signals["add"] == {"policy": 0.0, "response": pytest.approx(1)}
    assert weights.teachers["add"] == {"a": pytest.approx(1)}  # though by what was paid the student needs none
    assert kinds[0] == "audit alarm"
    assert "signal off" in kinds
    for step in range(15):
        state, weights, events = tick(controller, state, 0.85, 1.0, step)
        kinds += [event.kind for event in events]
    assert weights.signals["add"]["policy"] > 0.3
    assert kinds.count("audit alarm") == kinds.count("audit calm") == 1


def test_an_alarm_holds_while_its_skill_gets_no_prompts():
    """What a reward is worth does not go stale, and a skill that can't be trusted is hardly asked."""
    controller = GapController()
    state = distrusted(controller, 15, 0.95, 0.1)
    for step in range(30):
        state, weights, _ = controller.step(state, Observation(step, {}))
    assert weights.signals["add"] == {"policy": 0.0}


def test_a_reward_that_is_right_is_followed_exactly_as_without_an_audit():
    controller = GapController()
    plain, audited = start(controller), start(controller)
    for step in range(30):
        paid = 0.2 + 0.02 * step
        plain, without, _ = tick(controller, plain, paid, None, step)
        audited, checked, _ = tick(controller, audited, paid, 1.0, step)
        assert checked == without


def test_a_reward_that_lies_teaches_nothing_where_no_teacher_can_and_everything_once_it_is_mended():
    controller = GapController()
    state = distrusted(controller, 10, 0.9, 0.0)
    for step in range(10):
        state, weights, _ = tick(controller, json.loads(json.dumps(state)), 0.9, 1.0, step, teacher=False)
    assert weights.signals["add"] == {"policy": 1.0}


def test_a_reward_that_errs_half_the_time_is_noticed_without_a_jump():
    controller = GapController()
    state = start(controller)
    for step in range(15):
        state, weights, _ = tick(controller, state, 0.9, 0.55, step)
    assert weights.signals["add"]["policy"] < 0.1


def hacked(completions: list[str], **_: Any) -> list[float]:
    return [1.0] * len(completions)


def trusted(completions: list[str], skill: list[str], **_: Any) -> list[float | None]:
    """Finds all wrong, and has no say on the second skill."""
    return [0.0 if name == "first" else None for name in skill]


def test_a_share_of_what_is_paid_is_checked_wherever_it_lies():
    rows = [{"prompt": "a=", "skill": "first"}] * 400
    audit = RewardAudit(trusted, 0.25, seed=0)

    def counted(number: int, first: int, size: int) -> AuditCounts:
        """Counts of a process that has these completions of a rollout, of which the even ones were paid."""
        record = RolloutRecord(rows[:size], ["first"], number, first, group_size=4, num_fixed=0, is_training=True)
        record.rewards_AR = (torch.arange(400) % 2 == 0).float()[:, None]
        return audit.count(record, ["b"] * size, [[5]] * size)

    whole = counted(3, 0, 400)
    assert 30 < whole.audited_S.item() < 70
    assert whole.passed_S.item() == 0
    assert (counted(3, 0, 200) + counted(3, 200, 200)).to_json() == whole.to_json()
    assert counted(4, 0, 400).to_json() != whole.to_json()


def trainer(folder: Any, **given: Any) -> RLDTrainer:
    return RLDTrainer(
        model=tiny.model(),
        reward_funcs=hacked,
        args=RLDConfig(**tiny.rld_options(folder, max_steps=6, gate="per_prompt"), audit_share=0.5),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[Teacher(tiny.model(seed=2), name="one", tokenizer=tiny.tokenizer())],
        controller=GapController(decide_every=1),
        **given,
    )


def test_training_asks_the_trusted_reward_of_rollouts_and_of_teachers(tmp_path):
    made = trainer(tmp_path, audit_reward=trusted)
    made.train()
    last = {name: value for entry in made.state.log_history for name, value in entry.items()}
    assert last["audit/first"] == 0
    assert "audit/second" not in last
    assert {event.skill for event in made.events if event.kind == "audit alarm"} == {"first"}
    accuracy = made.runtime.state["skills"]["first"]["teachers"]["one"]["gate"]["accuracy"]
    assert accuracy["alpha"] <= 1 < accuracy["beta"]  # by the first reward it would be right each time


def test_a_trusted_reward_that_can_not_be_asked_is_refused(tmp_path):
    async def slow(completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(RecipeError, match="plain function"):
        trainer(tmp_path, audit_reward=slow)
    with pytest.raises(RecipeError, match="audit_share"):
        RLDConfig(**tiny.rld_options(tmp_path), audit_share=0.0)
