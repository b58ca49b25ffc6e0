"""Notices a student that no longer comes closer to a clearly better teacher, says so, and acts where it may.

`CapacityMonitor` is a controller around another one: it sees the same observations, keeps a short history of each skill
beside the other's state, and changes the other's weights while a skill has a capacity gap. Nothing here uses tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from rld.controllers.base import State
from rld.controllers.observation import (
    Observation,
    RequiredMeasurements,
    SkillObservation,
    TeacherObservation,
    Weights,
)
from rld.controllers.wrapped import WrappedController
from rld.types import Event, Signal
from rld.utils.options import FrozenOptions

QUANTILE = 2.576
"""Standard normal quantile of a two-sided 99 % interval. Each tick looks again: with 95 % intervals 3 % of students
that learn steadily are said to stand still within 60 ticks, with these none of 200."""

SOFT_START = 0.4
"""Share of the teacher in a softened target at first, the start of TAID (Shing et al. 2025)."""

MOVED_SHARE = 0.5
"""Share of the weight of `response` and `feature` that `reinforce` gives to `policy`."""


class CapacityRule(FrozenOptions):
    """Recognise a student that is too small for its teacher.

    A skill has a capacity gap when, between the last `window` ticks and those before, with 99 % confidence, its success
    has risen by less than `gain` and its divergence from the teacher has fallen by less than a share `closing` of it,
    while the teacher's lead, how much more often it is correct, is at least `min_lead` and its 99 % interval above 0. A
    curriculum that has raised the level meanwhile, or a divergence below `min_divergence`, is no gap.
    """

    act: Literal["report", "soften", "reinforce"] = "report"
    """What is done beside the event. `soften`: the response target starts again near the student and returns to the
    teacher by the end of the stage (the target of `taid`), on that skill. `reinforce`: half of the weight of `response`
    and `feature` goes to `policy`, on that skill, until the gap closes."""
    window: int = Field(15, ge=4, le=1000)
    """Ticks of each of the two windows that are compared; each tick counts in which the skill was measured."""
    gain: float = Field(0.05, gt=0, le=1)
    """Rise of the success rate from one window to the next that is no plateau."""
    closing: float = Field(0.15, gt=0, le=1)
    """Fall of the divergence from one window to the next, as a share of it, that is no plateau."""
    min_lead: float = Field(0.05, ge=0, lt=1)
    """Lead of the teacher, as a difference of success rates, that is worth telling of."""
    min_divergence: float = Field(0.01, ge=0)
    """Divergence from the teacher, in nats per token, below which the student counts as having its distribution."""


Counts = tuple[int, int]
"""Correct answers, and all."""


class Tick(BaseModel, frozen=True, extra="forbid"):
    """What one tick measured of a skill and its best teacher."""

    success: float
    """The student's success rate."""
    divergence: float
    """From the teacher, in nats per token."""
    level: float | None = None
    """Mean level of the prompts."""
    on_correct: float | None = None
    """The student's success rate on the prompts that the teacher answers correctly; None without a gate."""
    answers: Counts = (0, 0)
    """The teacher's correct greedy answers at the gate, of how many."""


class SkillCapacity(BaseModel, frozen=True, extra="forbid"):
    """The history of one skill, and whether it has a capacity gap."""

    teacher: str = ""
    """The teacher that the history is about."""
    ticks: tuple[Tick, ...] = ()
    """Of the last two windows, the oldest first."""
    sampled: Counts = (0, 0)
    """Its correct sampled answers to prompts that it answers correctly when greedy, of how many, since the start."""
    probe: Counts = (0, 0)
    """Its correct answers before the stage, of how many."""
    since: float | None = None
    """The stage's progress at which the gap was found; None: there is none."""


class Change(NamedTuple):
    """A mean after and before, and the half width of the 99 % interval of their difference."""

    before: float
    now: float
    radius: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Change:
        """Return the change from the older to the newer half of values; ticks are taken as independent."""
        half = len(values) // 2
        before, now = values[:half], values[-half:]
        error = math.sqrt((variance(before) + variance(now)) / half)
        return cls(fmean(before), fmean(now), QUANTILE * error)

    @property
    def most(self) -> float:
        """The largest rise that the interval has."""
        return self.now - self.before + self.radius

    @property
    def least(self) -> float:
        """The smallest."""
        return self.now - self.before - self.radius


@dataclass(frozen=True)
class CapacityMonitor(WrappedController):
    """A controller with the weights of another one, which it changes on skills with a capacity gap.

    Attributes:
        rule: When a skill has a capacity gap, and what to do then.
    """

    STATE_KEY = "capacity"

    rule: CapacityRule

    @property
    def required_measurements(self) -> RequiredMeasurements:
        """What the other controller requires, and sampled answers of teachers, for the student's are sampled too."""
        return self.controller.required_measurements._replace(resampled_answers=True)

    @property
    def softens(self) -> bool:
        """Whether it may soften targets."""
        return self.rule.act == "soften"

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        inner = self.controller.start(skills, teachers, signals)
        return {**inner, **_monitor_state({skill: SkillCapacity() for skill in skills}, 0.0)}

    def weights(self, state: State) -> Weights:
        return self._changed(self.controller.weights(self._inner(state)), _skills(state), state["capacity"]["progress"])

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        inner, weights, events = self.controller.step(self._inner(state), observation)
        skills = _skills(state)
        for skill, measured in observation.skills.items():
            skills[skill], skill_events = self._step_skill(skills[skill], skill, measured, observation)
            events = [*events, *skill_events]
        state = {**inner, **_monitor_state(skills, observation.progress)}
        return state, self._changed(weights, skills, observation.progress), events

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _step_skill(
        self, capacity: SkillCapacity, skill: str, measured: SkillObservation, observation: Observation
    ) -> tuple[SkillCapacity, list[Event]]:
        before, capacity = capacity, _with_tick(capacity, measured, 2 * self.rule.window)
        if capacity.teacher != before.teacher and before.since is not None:
            figures = f"it is compared with {capacity.teacher} from now on"
            rule = f"{before.teacher} does not teach the skill any more"
            return capacity, [Event(observation.step, "capacity gap closed", skill, before.teacher, figures, rule)]
        if len(capacity.ticks) < 2 * self.rule.window:
            return capacity, []
        has_gap, figures = self._judge(capacity)
        if has_gap == (capacity.since is not None):
            return capacity, []
        # What it does changes what is measured, so the history starts anew.
        capacity = capacity.model_copy(update={"ticks": (), "since": observation.progress if has_gap else None})
        kind = "capacity gap" if has_gap else "capacity gap closed"
        return capacity, [Event(observation.step, kind, skill, capacity.teacher, figures, self._rule(has_gap))]

    def _judge(self, capacity: SkillCapacity) -> tuple[bool, str]:
        """Return whether a skill has a gap, and the figures; one that was found stays until it has clearly closed."""
        rule, ticks = self.rule, capacity.ticks
        success, divergence = Change.of([t.success for t in ticks]), Change.of([-t.divergence for t in ticks])
        lead, radius = _lead(capacity, ticks[-rule.window :])
        levels = [tick.level for tick in ticks if tick.level is not None]
        is_harder = len(levels) == len(ticks) and Change.of(levels).least > 0
        is_ahead = lead > max(rule.min_lead, radius) and -divergence.now > rule.min_divergence
        if capacity.since is None:
            stands = success.most < rule.gain and divergence.most < rule.closing * -divergence.before
            has_gap = is_ahead and stands and not is_harder
        else:
            moves = success.least > 0 and divergence.least > 0
            has_gap = is_ahead and not moves
        return has_gap, (
            f"over the last {rule.window} ticks, against the {rule.window} before, divergence from {capacity.teacher} "
            f"went from {-divergence.before:.3g} to {-divergence.now:.3g} ± {divergence.radius:.2g} nats per token and "
            f"success from {success.before:.2f} to {success.now:.2f} ± {success.radius:.2f}; "
            f"the teacher's lead is {lead:.2f} ± {radius:.2f}"
        )

    def _rule(self, has_gap: bool) -> str:
        if not has_gap:
            return "the student comes closer again, or the teacher is no longer ahead"
        advice = "train longer, or train a model of a size between the two first and let it teach this student too"
        action = {
            "report": "",
            "soften": f"; its target is {SOFT_START:.0%} of the teacher now, and all of it at the stage's end",
            "reinforce": f"; {MOVED_SHARE:.0%} of the weight of distillation goes to reinforcement",
        }
        return f"neither comes closer and the teacher leads: {advice}{action[self.rule.act]}"

    # -- acting --------------------------------------------------------------------------------------------------------

    def _changed(self, weights: Weights, skills: dict[str, SkillCapacity], progress: float) -> Weights:
        since = {skill: capacity.since for skill, capacity in skills.items() if capacity.since is not None}
        if self.rule.act == "soften":
            shares = {skill: _teacher_share(start, progress) for skill, start in since.items()}
            return replace(weights, teacher_share=shares)
        if self.rule.act == "reinforce":
            moved = {skill: _reinforced(w) if skill in since else w for skill, w in weights.signals.items()}
            return replace(weights, signals=moved)
        return weights


def _monitor_state(skills: Mapping[str, SkillCapacity], progress: float) -> State:
    """Return what the monitor adds to the other controller's state; that one may have a key `progress` too."""
    saved = {skill: capacity.model_dump(mode="json") for skill, capacity in skills.items()}
    return {"capacity": {"skills": saved, "progress": progress}}


def _skills(state: State) -> dict[str, SkillCapacity]:
    return {skill: SkillCapacity.model_validate(saved) for skill, saved in state["capacity"]["skills"].items()}


def _with_tick(capacity: SkillCapacity, measured: SkillObservation, length: int) -> SkillCapacity:
    """Return a skill's history with one tick more; it starts anew when the teacher that it is about stops teaching.

    A teacher that the gate asked, and that was wrong on all prompts of the tick, is not measured and still teaches.
    """
    teachers = {
        name: teacher
        for name, teacher in measured.teachers.items()
        if teacher.teaches and teacher.divergence is not None and math.isfinite(teacher.divergence)
    }
    if not teachers or not measured.attempts:
        return capacity
    if capacity.teacher not in teachers:
        current = measured.teachers.get(capacity.teacher)
        if current is not None and current.teaches and current.prompts:
            return capacity
        capacity = SkillCapacity(teacher=max(teachers, key=lambda name: _accuracy(teachers[name])))
    teacher = teachers[capacity.teacher]
    tick = Tick(
        success=measured.successes / measured.attempts,
        divergence=teacher.divergence or 0.0,
        level=measured.level,
        on_correct=teacher.successes / teacher.attempts if teacher.attempts else None,
        answers=(teacher.correct, teacher.prompts),
    )
    counts = capacity.sampled[0] + teacher.resampled_correct, capacity.sampled[1] + teacher.resampled
    return capacity.model_copy(
        update={
            "ticks": (*capacity.ticks, tick)[-length:],
            "sampled": counts,
            "probe": (teacher.probe_correct, teacher.probe_size),
        }
    )


def _accuracy(teacher: TeacherObservation) -> float:
    """Return how often a teacher is correct, by the gate if it was asked, else by the probe."""
    correct, size = (
        (teacher.correct, teacher.prompts) if teacher.prompts else (teacher.probe_correct, teacher.probe_size)
    )
    return (correct + 1) / (size + 2)


def _lead(capacity: SkillCapacity, ticks: Sequence[Tick]) -> tuple[float, float]:
    """Return how much more often the teacher is correct than the student, and half its 99 % interval.

    Like is compared with like where it can be: sampled answers of both, to prompts that the teacher answers correctly.
    Without sampled answers it is greedy ones at the gate, or of the probe, with the student's sampled ones.
    """
    on_correct = [tick.on_correct for tick in ticks if tick.on_correct is not None]
    if capacity.sampled[1] and len(on_correct) > 1:
        correct, size = capacity.sampled
    else:
        on_correct = [tick.success for tick in ticks]
        correct, size = sum(t.answers[0] for t in ticks), sum(t.answers[1] for t in ticks)
        correct, size = (correct, size) if size else capacity.probe
    rate = (correct + 1) / (size + 2)  # so that few answers that are all correct have an error too
    error = rate * (1 - rate) / (size + 2) + variance(on_correct) / len(on_correct)
    return correct / max(size, 1) - fmean(on_correct), QUANTILE * math.sqrt(error)


def _teacher_share(since: float, progress: float) -> float:
    """Return the share of the teacher in a softened target; it grows linearly and is 1 at the end of the stage."""
    elapsed_share = (progress - since) / (1 - since) if since < 1 else 1.0
    return SOFT_START + (1 - SOFT_START) * min(max(elapsed_share, 0.0), 1.0)


def _reinforced(weights: Mapping[str, float]) -> dict[str, float]:
    """Return a skill's signal weights, with the same sum and more of it on `policy`."""
    other_weights = {signal: weight * (1 - MOVED_SHARE) for signal, weight in weights.items() if signal != "policy"}
    return other_weights | {"policy": sum(weights.values()) - sum(other_weights.values())}
