"""State of the default controller: what it has learnt of each skill, as frozen models that dump to plain JSON.

The methods take in the measurements of one tick and return new states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel

from rld.controllers.base import clip, running
from rld.controllers.beta_posterior import UNIFORM, BetaPosterior, ChangeDetector
from rld.controllers.mirror_step import WeightState
from rld.controllers.observation import SkillObservation, TeacherObservation

REWARD_PRECISION_PRIOR = BetaPosterior(alpha=2.0, beta=0.2)
"""Prior of the share of paid completions that are correct: a reward is trusted until an audit shows otherwise."""

DISTRUSTED_PRECISION = 0.5
"""Share of correct payments up to which a reward is not trusted at all: it is wrong as often as correct."""

TRUSTED_PRECISION = 0.9
"""Share of correct payments from which a reward is trusted fully: an audit of few payments can't tell more."""

ALARM_BELOW = 0.25
"""Trust in a reward, in [0, 1], below which the alarm is raised."""

CALM_ABOVE = 0.5
"""Trust in a reward above which the alarm ends; higher than `ALARM_BELOW`, so that it does not alternate."""

SAMPLED_ACCURACY_PRIOR = BetaPosterior(alpha=2.0, beta=0.0)
"""Prior of a teacher's accuracy when it samples, on prompts that it answers correctly when greedy."""

SAMPLED_ACCURACY_MEMORY = 0.98
"""Share of earlier counts of sampled answers that one tick keeps: high, because teachers are sampled seldom."""

INFORMATIVE_MEMORY = 0.5
"""Share of the running share of informative groups that one tick keeps."""

HISTORY_TICKS = 20
"""Ticks of a skill's success that are kept; its progress counts once there are as many."""

PROGRESS_TICKS = 10
"""Ticks over which a skill's progress is measured."""

FULL_PROGRESS = 0.05
"""Change of the success rate over `PROGRESS_TICKS`, beyond its standard error, that counts as full progress."""

MIN_PROGRESS = 0.25
"""Factor at least by which slow progress reduces a skill's claim on prompts: it may still start to learn."""


class Worths(NamedTuple):
    """Worth in [0, 1] of a skill's signals and teachers, and the odds at which teachers of equal worth share."""

    signals: dict[str, float]
    teachers: dict[str, float]
    teacher_odds: dict[str, float]


class GateState(BaseModel, frozen=True, extra="forbid"):
    """What the gate has shown of one teacher on one skill."""

    accuracy: BetaPosterior
    """Of the teacher's greedy answers."""
    sampled_accuracy: BetaPosterior = SAMPLED_ACCURACY_PRIOR
    """Of its sampled answers to prompts that it answers correctly when greedy."""
    student_accuracy: BetaPosterior = UNIFORM
    """Of the student's attempts at the same prompts."""
    change_detector: ChangeDetector
    """Of `accuracy`."""
    last_tick: int
    """The last tick in which the gate asked the teacher."""

    @classmethod
    def before(cls, tick: int, counts: TeacherObservation) -> GateState:
        """Return the state before the first answer to the gate, in `tick`: what the probe showed."""
        probe = BetaPosterior.of_counts(counts.probe_correct, counts.probe_size)
        return cls(accuracy=probe, change_detector=ChangeDetector(baseline=probe), last_tick=tick - 1)

    def after(self, counts: TeacherObservation, credibility: float, memory: float, tick: int) -> GateState:
        """Return the state after the answers and attempts of a tick."""
        detector, has_changed = self.change_detector.after(counts.correct, counts.prompts)
        accuracy, sampled_accuracy = self.accuracy, self.sampled_accuracy
        if has_changed:
            accuracy, sampled_accuracy = UNIFORM, SAMPLED_ACCURACY_PRIOR
        # A teacher that was off is asked again after many ticks. Its counts of then weigh less, but their mean is still
        # the best estimate: from the prior, one that was never correct would be switched on after each recheck.
        faded = memory ** (tick - self.last_tick - 1)
        accuracy = accuracy.scaled(faded).updated(counts.correct, counts.prompts, memory=memory)
        return GateState(
            accuracy=accuracy,
            sampled_accuracy=sampled_accuracy.updated(
                counts.resampled_correct,
                counts.resampled,
                memory=SAMPLED_ACCURACY_MEMORY,
                prior=SAMPLED_ACCURACY_PRIOR,
            ),
            student_accuracy=self.student_accuracy.scaled(faded).updated(
                credibility * counts.successes, counts.attempts, memory=memory
            ),
            change_detector=detector.rebased(accuracy),
            last_tick=tick,
        )


class TeacherState(BaseModel, frozen=True, extra="forbid"):
    """One teacher on one skill."""

    weight: WeightState
    divergence: float | None = None
    """Of the student from it, in nats per token, when it was last measured."""
    gate: GateState | None = None
    """None: the gate has not asked it yet."""

    def after_divergence(self, divergence: float | None) -> TeacherState:
        """Return the state after a tick; a teacher that is off is not measured, and its last divergence stays."""
        if divergence is None or not math.isfinite(divergence):
            return self
        return self.model_copy(update={"divergence": divergence})

    def after_gate(self, counts: TeacherObservation, credibility: float, memory: float, tick: int) -> TeacherState:
        """Return the state after a tick in which the gate may have asked the teacher."""
        # Where the verifier does not apply, all answers pass and no attempt counts: that shows nothing.
        if not (counts.prompts or counts.attempts) or (counts.correct and not counts.attempts):
            return self
        gate = self.gate or GateState.before(tick, counts)
        return self.model_copy(update={"gate": gate.after(counts, credibility, memory, tick)})


class SkillState(BaseModel, frozen=True, extra="forbid"):
    """What has been learnt of one skill, and the weights on it."""

    student_accuracy: BetaPosterior = UNIFORM
    reward_precision: BetaPosterior = REWARD_PRECISION_PRIOR
    """Of the share of paid completions that the audit found correct."""
    change_detector: ChangeDetector = ChangeDetector(baseline=REWARD_PRECISION_PRIOR)
    """Of `reward_precision`."""
    audit_alarm: bool = False
    """Whether the reward is distrusted."""
    informative: float | None = None
    """Running share of groups whose completions got different rewards; None before the first group."""
    ticks_unseen: int = 0
    """Consecutive ticks without a prompt of this skill."""
    success_history: tuple[BetaPosterior, ...] = ()
    """`student_accuracy` of the last ticks with attempts, the oldest first."""
    best_worth: float = 1.0
    """The highest worth of its signals, in [0, 1]."""
    signals: dict[str, WeightState]
    teachers: dict[str, TeacherState]

    @property
    def reward_trust(self) -> float:
        """How far the reward is trusted, in [0, 1], given the share of its payments that are correct."""
        precision = self.reward_precision.mean
        return clip((precision - DISTRUSTED_PRECISION) / (TRUSTED_PRECISION - DISTRUSTED_PRECISION), 0, 1)

    @property
    def success_credibility(self) -> float:
        """Factor for the student's successes, in [0, 1]: what is paid for wrongly is no success."""
        return min(self.reward_precision.mean / TRUSTED_PRECISION, 1.0)

    @property
    def possible_gain(self) -> float:
        """What its prompts can still gain, in [0, 1]: the failure rate, reduced where progress is slow."""
        failure_rate, history = 1 - self.student_accuracy.mean, self.success_history
        if len(history) < HISTORY_TICKS:
            return failure_rate
        before, now = history[-1 - PROGRESS_TICKS], history[-1]
        progress = abs(now.mean - before.mean) - math.sqrt(before.variance + now.variance)
        return failure_rate * clip(MIN_PROGRESS + progress / FULL_PROGRESS, MIN_PROGRESS, 1.0)

    @property
    def teacher_weights(self) -> dict[str, WeightState]:
        return {name: teacher.weight for name, teacher in self.teachers.items()}

    def with_teacher_weights(self, weights: Mapping[str, WeightState]) -> SkillState:
        """Return the state with other weights of its teachers."""
        teachers = {name: old.model_copy(update={"weight": weights[name]}) for name, old in self.teachers.items()}
        return self.model_copy(update={"teachers": teachers})

    def after_audit(self, num_passed: int, num_audited: int, memory: float) -> SkillState:
        """Return the state after the audit of some payments; `audit_alarm` may have changed."""
        if not num_audited:
            return self
        detector, has_changed = self.change_detector.after(num_passed, num_audited)
        precision = REWARD_PRECISION_PRIOR if has_changed else self.reward_precision
        precision = precision.updated(num_passed, num_audited, memory=memory, prior=REWARD_PRECISION_PRIOR)
        state = self.model_copy(update={"reward_precision": precision, "change_detector": detector.rebased(precision)})
        alarm = state.reward_trust <= CALM_ABOVE if self.audit_alarm else state.reward_trust < ALARM_BELOW
        return state.model_copy(update={"audit_alarm": alarm})

    def after_attempts(self, measured: SkillObservation, memory: float) -> SkillState:
        """Return the state after the student's attempts, and with the share of informative groups."""
        successes = self.success_credibility * measured.successes
        accuracy = self.student_accuracy.updated(successes, measured.attempts, memory=memory)
        history, informative = self.success_history, self.informative
        if measured.attempts:
            history = (*history, accuracy)[-HISTORY_TICKS:]
        if measured.groups:
            informative = running(informative, measured.informative_groups / measured.groups, INFORMATIVE_MEMORY)
        return self.model_copy(
            update={"student_accuracy": accuracy, "success_history": history, "informative": informative}
        )
