"""Events of the default controller: what it decided, and the measurements from which that followed, as clauses."""

from __future__ import annotations

from collections.abc import Mapping

from rld.controllers.gap_state import ALARM_BELOW, CALM_ABOVE, SkillState, Worths
from rld.controllers.mirror_step import Switch
from rld.controllers.observation import SkillObservation
from rld.types import Event


def switch_event(step: int, thing: str, skill: str, change: Switch, worth: Mapping[str, float], reason: str) -> Event:
    """Return the event of a switch.

    Args:
        step: The optimiser step.
        thing: What was switched, `teacher` or `signal`.
        skill: On which skill.
        change: Its name, and the rule that it met.
        worth: By name.
        reason: The measurements.
    """
    kind = f"{thing} {'on' if change.is_on else 'off'}"
    return Event(step, kind, skill, change.name, reason, f"worth {worth[change.name]:.3f}, {change.rule}")


def audit_event(step: int, name: str, skill: SkillState, measured: SkillObservation) -> Event:
    """Return the event of an audit whose alarm is raised, or ends."""
    reason = (
        f"{measured.audit_passed} of {measured.audited} audited payments were correct, "
        f"{skill.reward_precision.mean:.0%} in the long run"
    )
    if skill.audit_alarm:
        return Event(step, "audit alarm", name, "policy", reason, f"trust below {ALARM_BELOW:g}")
    return Event(step, "audit calm", name, "policy", reason, f"trust above {CALM_ABOVE:g}")


def teacher_reason(skill: SkillState, measured: SkillObservation, name: str, threshold: float) -> str:
    """Return the measurements from which a teacher's worth followed.

    Args:
        skill: The state before weights moved.
        measured: Of the tick.
        name: The teacher.
        threshold: Accuracy below which a teacher is worth less for that alone.
    """
    teacher, counts = skill.teachers[name], measured.teachers.get(name)
    student = f"the student {skill.student_accuracy.mean:.0%}"
    if counts is None or not counts.teaches:
        return "it does not teach this skill"
    if teacher.gate is not None:
        gate = teacher.gate
        if gate.accuracy.mean < threshold:
            return f"it answered {gate.accuracy.mean:.0%} of prompts correctly, {student}"
        return (
            f"on prompts that it answers correctly, {gate.sampled_accuracy.mean:.0%} of its sampled answers are "
            f"correct, and {gate.student_accuracy.mean:.0%} of the student's"
        )
    if counts.probe_size and skill.success_history:
        return f"it answered {counts.probe_correct} of {counts.probe_size} probe prompts correctly, {student}"
    if teacher.divergence is None:
        return "nobody verifies its answers"
    return f"nobody verifies its answers, and the student is {teacher.divergence:.2g} nats per token from it"


def signal_reason(skill: SkillState, worths: Worths, signal: str) -> str:
    """Return the measurements from which a signal's worth followed."""
    if signal == "policy":
        reason = f"{skill.informative or 0.0:.0%} of groups had different rewards"
        return reason if skill.reward_trust == 1 else f"{reason}, trust in the reward is {skill.reward_trust:.0%}"
    best = f"the most useful teacher has worth {max(worths.teachers.values(), default=0.0):.2f}"
    divergences = [teacher.divergence for teacher in skill.teachers.values() if teacher.divergence is not None]
    if signal == "feature" and divergences:
        return f"{best}, and the student is at most {max(divergences):.2g} nats per token from a teacher"
    return best
