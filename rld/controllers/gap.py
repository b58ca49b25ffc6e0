"""The default controller: weights follow the gap that each signal can still close, per skill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from rld.controllers.base import PRIOR, BaseController, Share, State, clip, normalised
from rld.controllers.beta_posterior import BetaPosterior
from rld.controllers.gap_events import audit_event, signal_reason, switch_event, teacher_reason
from rld.controllers.gap_state import GateState, SkillState, TeacherState, Worths
from rld.controllers.mirror_step import (
    Switch,
    SwitchRule,
    WeightState,
    mirror_step,
    shares_of,
    sum_to_one,
    switch,
    weight_states,
)
from rld.controllers.observation import Observation, RequiredMeasurements, SkillObservation, Weights
from rld.types import Event, Signal

TICKS_TO_FORGET = 20
"""Ticks without a prompt of a skill after which its state is reset: the student has changed meanwhile."""

UNIFORM_SHARE = 0.2
"""Share of the prompts that is split evenly between the skills, so that each one stays measured."""

ALLOCATION_STEP = 0.3
"""Share of the way to the skills' new shares of the prompts that one tick takes, if all prompts are sampled."""


class GapController(BaseController):
    """Weights follow the gap that each signal can still close, per skill.

    - `policy` is worth the measured share of groups whose completions got different rewards: where all succeed or
      all fail, reinforcement has no gradient.
    - A teacher that the gate restricts to prompts that it answers correctly is worth its lead on these prompts: how
      much more often than the student it is correct when both sample, relative to `lead_scale`. A teacher that teaches
      on all prompts is worth the probability that it is better than the student, times its lead relative to
      `lead_scale`. Teachers share the weight in proportion to worth times squared accuracy. Accuracies are Beta
      posteriors of verified successes, with forgetting. Teachers that were never verified are all worth the largest
      divergence of the student from one of them, relative to `divergence_scale`.
    - `response` is worth as much as its best teacher; `feature` too, but less as the student's outputs approach the
      teachers'.

    Each tick takes a capped mirror step towards weights in proportion to `prior * worth`. A signal or teacher is
    switched off after `patience_ticks` ticks of worth below `off_below`, and on again after two ticks above three times
    that.
    `policy` is off only while an audit shows that its reward can't be trusted: the worth of `policy`, and what counts
    as the student's success, shrink with the share of audited payments that are correct. Prompts go to the skills in
    proportion to the highest worth of their signals, times the student's failure rate.
    """

    kind: Literal["gap"] = "gap"
    use_gate_counts: bool = True
    """Whether the gate's counts measure teachers. False: only the probe before the stage does."""
    fixed_policy_weight: Share | None = None
    """Keep the policy's weight at this value, and divide the rest by `prior`. None: it follows worth."""
    switch_off_useless: bool = True
    """Whether signals and teachers of little worth are switched off. False: they keep a small weight."""
    allocate: bool = True
    """Whether prompts go where they are worth most, if the curriculum allows it. False: the curriculum's own shares."""
    memory: float = Field(0.9, gt=0, lt=1)
    """Share of earlier counts of successes that one tick keeps."""
    lead_scale: float = Field(0.2, gt=0)
    """Lead of a teacher over the student, as a difference of success rates, that is worth 1. Behind a gate, a teacher
    that answers less than this share of a skill's prompts correctly is worth less, by the cube of the ratio."""
    divergence_scale: float = Field(0.05, gt=0)
    """Divergence of the student from a teacher, in nats per token, that is worth 1."""
    prior: dict[Signal, Annotated[float, Field(gt=0)]] = {}
    """How much a signal of worth 1 counts, relative to the others. Not named: 0.1 for `feature`, 1 for the others."""
    step_size: float = Field(0.5, gt=0, le=1)
    """Share of the way to the target, in log space, that a tick takes."""
    max_log_step: float = Field(0.7, gt=0)
    """The most that the logarithm of a weight changes by in a tick, before normalisation."""
    off_below: float = Field(0.05, ge=0, lt=1 / 3)
    """A signal or teacher is switched off when its worth stays below this, and on again when it stays above three times
    this: at one threshold noise would switch it on and off."""
    patience_ticks: int = Field(3, gt=0)
    """Consecutive ticks of worth below `off_below` after which a signal or teacher is switched off."""

    @property
    def required_measurements(self) -> RequiredMeasurements:
        return RequiredMeasurements(resampled_answers=self.use_gate_counts)

    # -- state -------------------------------------------------------------------------------------------------------

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        state = super().start(skills, teachers, signals)
        fresh = self._fresh_skill(teachers, signals)
        return state | {
            "skills": {skill: fresh.model_dump(mode="json") for skill in skills},
            "allocation": normalised(dict.fromkeys(skills, 1.0)),
        }

    def _fresh_skill(self, teachers: list[str], signals: list[Signal]) -> SkillState:
        """Return the state of a skill before any measurement."""
        prior = PRIOR | self.prior
        shares = normalised({signal: prior[signal] for signal in signals})
        if self.fixed_policy_weight is not None and "policy" in shares and len(shares) > 1:
            rest = normalised({signal: share for signal, share in shares.items() if signal != "policy"})
            shares = {"policy": self.fixed_policy_weight} | {
                signal: (1 - self.fixed_policy_weight) * share for signal, share in rest.items()
            }
        weights = weight_states(normalised(dict.fromkeys(teachers, 1.0)))
        return SkillState(
            signals=weight_states(shares), teachers={name: TeacherState(weight=weights[name]) for name in teachers}
        )

    def _reset_skill(self, skill: SkillState, teachers: list[str], signals: list[Signal]) -> SkillState:
        """Return the state of a skill that had no prompts for long: all but what the audit has shown starts anew."""
        fresh = self._fresh_skill(teachers, signals)
        weights = fresh.signals
        if skill.audit_alarm and "policy" in weights:
            weights = sum_to_one(weights | {"policy": skill.signals["policy"]})
        return fresh.model_copy(
            update={
                "reward_precision": skill.reward_precision,
                "change_detector": skill.change_detector,
                "audit_alarm": skill.audit_alarm,
                "ticks_unseen": skill.ticks_unseen,
                "signals": weights,
            }
        )

    def resume(self, state: State, teachers: list[str]) -> State:
        state = super().resume(state, teachers)
        shares = normalised(dict.fromkeys(teachers, 1.0))
        fresh = {name: TeacherState(weight=weight) for name, weight in weight_states(shares).items()}
        skills = {}
        for name, skill in _skill_states(state).items():
            present = {teacher: skill.teachers.get(teacher, fresh[teacher]) for teacher in teachers}
            skill = skill.model_copy(update={"teachers": present})
            skills[name] = skill.with_teacher_weights(sum_to_one(skill.teacher_weights)).model_dump(mode="json")
        return {**state, "skills": skills}

    def weights(self, state: State) -> Weights:
        skills = _skill_states(state)
        return Weights(
            signals={name: shares_of(skill.signals) for name, skill in skills.items()},
            teachers={name: shares_of(skill.teacher_weights) for name, skill in skills.items()},
            scale=self._scale(state),
            allocation=state["allocation"] if self.allocate else None,
        )

    # -- one tick ----------------------------------------------------------------------------------------------------

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, observation)
        skills, events = _skill_states(state), []
        for name in sorted(skills):
            measured = observation.skills.get(name, SkillObservation())
            if measured.attempts or measured.groups:
                skills[name], changes = self._step_skill(name, skills[name], measured, observation.step, state["tick"])
                events += changes
                continue
            ticks_unseen = 0 if measured.gold_answers else skills[name].ticks_unseen + 1
            skill = skills[name].model_copy(update={"ticks_unseen": ticks_unseen})
            if skill.ticks_unseen == TICKS_TO_FORGET and skill.success_history:
                skill = self._reset_skill(skill, state["teachers"], state["signals"])
                reason = f"it had no prompts for {TICKS_TO_FORGET} ticks"
                events.append(Event(observation.step, "skill forgotten", name, "all", reason, "back to the prior"))
            skills[name] = skill
        state["skills"] = {name: skill.model_dump(mode="json") for name, skill in skills.items()}
        state["allocation"] = _allocation(state["allocation"], skills, ALLOCATION_STEP * observation.sampled_share)
        return state, self.weights(state), events

    def _step_skill(
        self, name: str, skill: SkillState, measured: SkillObservation, step: int, tick: int
    ) -> tuple[SkillState, list[Event]]:
        """Return a skill's state after the tick's measurements and with moved weights, and the events."""
        skill, events = self._observe_reward(name, skill.model_copy(update={"ticks_unseen": 0}), measured, step)
        skill = self._observe_teachers(skill.after_attempts(measured, self.memory), measured, tick)
        worths = self._worths(skill, measured)
        best = max([measured.gold_share, *(worths.signals[signal] for signal in skill.signals)])
        skill = skill.model_copy(update={"best_worth": best})
        moved, teacher_switches, signal_switches = self._move_weights(skill, worths)
        for change in teacher_switches:
            reason = teacher_reason(skill, measured, change.name, threshold=self.lead_scale)
            events.append(switch_event(step, "teacher", name, change, worths.teachers, reason))
        for change in signal_switches:
            reason = signal_reason(skill, worths, change.name)
            events.append(switch_event(step, "signal", name, change, worths.signals, reason))
        return moved, events

    def _observe_reward(
        self, name: str, skill: SkillState, measured: SkillObservation, step: int
    ) -> tuple[SkillState, list[Event]]:
        """Take in the audit's counts; the event tells that its alarm is raised, or ends."""
        after = skill.after_audit(measured.audit_passed, measured.audited, self.memory)
        if after.audit_alarm == skill.audit_alarm:
            return after, []
        return after, [audit_event(step, name, after, measured)]

    def _observe_teachers(self, skill: SkillState, measured: SkillObservation, tick: int) -> SkillState:
        """Take in the teachers' divergences, and what the gate counted."""
        teachers = dict(skill.teachers)
        for name, counts in measured.teachers.items():
            if name in teachers:
                teachers[name] = teachers[name].after_divergence(counts.divergence)
                if self.use_gate_counts and measured.attempts:
                    teachers[name] = teachers[name].after_gate(counts, skill.success_credibility, self.memory, tick)
        return skill.model_copy(update={"teachers": teachers})

    # -- worth -------------------------------------------------------------------------------------------------------

    def _worths(self, skill: SkillState, measured: SkillObservation) -> Worths:
        """Return what a skill's signals and teachers are worth now."""
        teaching = {name for name, counts in measured.teachers.items() if name in skill.teachers and counts.teaches}
        accuracies = self._teacher_accuracies(skill, measured, teaching)
        # Among teachers that nobody has verified none can be preferred: least of all the one that differs most.
        unverified = [skill.teachers[name].divergence for name in teaching if name not in accuracies]
        unverified_worth = self._divergence_worth(unverified)
        teachers = dict.fromkeys(skill.teachers, 0.0)
        for name in teaching:
            teachers[name] = unverified_worth
            if name in accuracies:
                teachers[name] = self._verified_worth(skill, skill.teachers[name].gate, accuracies[name])
        best = max(teachers.values(), default=0.0)
        active = [teacher.divergence for teacher in skill.teachers.values() if teacher.weight.is_on]
        trust = 0.0 if skill.audit_alarm else skill.reward_trust
        signals = {
            "policy": (skill.informative or 0.0) * trust,
            "response": best,
            "feature": best * self._divergence_worth(active),
        }
        # Squared, so that a weak teacher does not dilute a strong one while the student is weaker than both.
        highest = max((accuracy.mean for accuracy in accuracies.values()), default=1.0)
        odds = {name: (accuracy.mean / highest) ** 2 for name, accuracy in accuracies.items()}
        return Worths(signals, teachers, odds)

    def _teacher_accuracies(
        self, skill: SkillState, measured: SkillObservation, teaching: set[str]
    ) -> dict[str, BetaPosterior]:
        """Return the accuracies of the teachers that were verified: by the gate, or by probe prompts."""
        accuracies = {}
        for name in teaching:
            gate, counts = skill.teachers[name].gate, measured.teachers[name]
            if gate is not None:
                accuracies[name] = gate.accuracy
            elif counts.probe_size and skill.success_history:  # without attempts of the student there is no lead
                accuracies[name] = BetaPosterior.of_counts(counts.probe_correct, counts.probe_size)
        return accuracies

    def _divergence_worth(self, divergences: list[float | None]) -> float:
        """Return the worth, in [0, 1], of matching the teacher that is furthest away; 1 if none was measured."""
        measured = [nats for nats in divergences if nats is not None]
        return clip(max(measured) / self.divergence_scale, 0, 1) if measured else 1.0

    def _verified_worth(self, skill: SkillState, gate: GateState | None, accuracy: BetaPosterior) -> float:
        """Return the worth, in [0, 1], of a verified teacher: its lead over the student."""
        if gate is not None:
            lead = gate.sampled_accuracy.mean - gate.student_accuracy.mean
            # A ramp, and no threshold: measured accuracy fluctuates, and weights should not.
            coverage = min(accuracy.mean / self.lead_scale, 1.0)
            return clip(lead / self.lead_scale, 0, 1) * coverage**3
        student = skill.student_accuracy
        lead = accuracy.mean - student.mean
        probability = 0.5 * math.erfc(-lead / math.sqrt(2 * (student.variance + accuracy.variance)))
        return probability * clip(lead / self.lead_scale, 0, 1)

    # -- weights -----------------------------------------------------------------------------------------------------

    def _move_weights(self, skill: SkillState, worths: Worths) -> tuple[SkillState, list[Switch], list[Switch]]:
        """Return the skill with moved weights, and the switches of teachers and of signals."""
        weights, teacher_switches = self._step_weights(
            skill.teacher_weights, worths.teachers, worths.teacher_odds, never_off=""
        )
        skill = skill.with_teacher_weights(weights)
        if self.fixed_policy_weight is not None:
            return skill, teacher_switches, []
        prior = {str(signal): odds for signal, odds in (PRIOR | self.prior).items()}
        never_off = "" if skill.audit_alarm else "policy"
        signals, signal_switches = self._step_weights(skill.signals, worths.signals, prior, never_off)
        return skill.model_copy(update={"signals": signals}), teacher_switches, signal_switches

    def _step_weights(
        self, weights: Mapping[str, WeightState], worth: Mapping[str, float], odds: Mapping[str, float], never_off: str
    ) -> tuple[dict[str, WeightState], list[Switch]]:
        """Return the weights after one tick, and what was switched on or off."""
        switches: list[Switch] = []
        if self.switch_off_useless:
            weights, switches = switch(weights, worth, SwitchRule(self.off_below, self.patience_ticks), never_off)
        return mirror_step(weights, worth, odds, step_size=self.step_size, max_log_step=self.max_log_step), switches


def _skill_states(state: State) -> dict[str, SkillState]:
    return {name: SkillState.model_validate(skill) for name, skill in state["skills"].items()}


def _allocation(before: Mapping[str, float], skills: Mapping[str, SkillState], step: float) -> dict[str, float]:
    """Return the skills' shares of the prompts after one tick: a step towards what they are worth.

    A skill that has had no prompt for long has no claim beyond the uniform share.
    """
    worth = {
        name: skill.best_worth * skill.possible_gain if skill.ticks_unseen < TICKS_TO_FORGET else 0.0
        for name, skill in skills.items()
    }
    targets = normalised(worth) if sum(worth.values()) else normalised(dict.fromkeys(worth, 1.0))
    shares = {}
    for name, share in before.items():
        target = (1 - UNIFORM_SHARE) * targets[name] + UNIFORM_SHARE / len(targets)
        shares[name] = share + step * (target - share)
    return shares
