"""Events that follow from a change of weights, whatever the controller: phases of a skill, and switches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rld.controllers.observation import Weights
from rld.types import Event

PHASES = ("distilling", "mostly reinforcing", "reinforcing alone")

_PHASE_BAND = 0.05
"""Difference of the shares of policy and distillation, within which the phase stays as it was: it should not alternate
while the two are level."""


def phase_of(signals: Mapping[str, float], before: int) -> int:
    """Return a skill's phase, an index of `PHASES`.

    Args:
        signals: The weights of its signals.
        before: Its phase so far, which stays while the weights of policy and distillation are level or all 0.
    """
    policy = signals.get("policy", 0.0)
    distillation = sum(signals.values()) - policy
    if not policy and not distillation:
        return before
    if not distillation:
        return 2
    lead = (policy - distillation) / (policy + distillation)
    return before if before < 2 and abs(lead) <= _PHASE_BAND else int(lead > 0)


def phase_events(step: int, weights: Weights, before: Mapping[str, int], now: Mapping[str, int]) -> list[Event]:
    """Return an event for each skill whose phase changed."""
    return [
        Event(
            step=step,
            kind="phase",
            skill=skill,
            about=PHASES[phase],
            measured="weights are " + ", ".join(f"{signal} {w:.2f}" for signal, w in weights.signals[skill].items()),
            rule=f"it was {PHASES[before[skill]]}",
        )
        for skill, phase in now.items()
        if phase != before[skill]
    ]


def switch_events(step: int, before: Weights, now: Weights, reported: Sequence[Event]) -> list[Event]:
    """Return an event for each signal and teacher that was switched on or off, except for those `reported` already."""
    skills = list(now.signals)
    reported_switches = {
        (event.kind, skill, event.about)
        for event in reported
        for skill in ([event.skill] if event.skill in skills else skills)  # or it concerns them all
    }
    events = []
    for thing, old, new in (("signal", before.signals, now.signals), ("teacher", before.teachers, now.teachers)):
        for skill in skills:
            for name, weight in new[skill].items():
                kind = f"{thing} {'on' if weight else 'off'}"
                old_weight = old[skill].get(name, 0.0)
                if bool(old_weight) != bool(weight) and (kind, skill, name) not in reported_switches:
                    reason = f"its weight was {old_weight:.2g} and is {weight:.2g}"
                    events.append(Event(step, kind, skill, name, reason, "decided by the controller"))
    return events
