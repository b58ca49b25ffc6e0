"""How much each signal and each teacher counts now, per skill: the baselines, and the union of all controllers.

To add one, write a class here or in a file of its own, and put its name in `AnyController`, at the end.
"""

from __future__ import annotations

import math
import random
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from rld.controllers.base import (
    BaseController,
    FixedTeacherShares,
    PerSkill,
    State,
    at,
    normalised,
    require_skills,
    running,
)
from rld.controllers.observation import Observation, SkillObservation, Weights
from rld.errors import ControllerError
from rld.types import SIGNALS, Event, Signal
from rld.utils.options import FrozenOptions

_ALL = "all skills"


class FixedController(FixedTeacherShares):
    """The same weights from start to end: the baseline that an adaptive controller must beat."""

    kind: Literal["fixed"] = "fixed"
    policy: PerSkill = 1.0
    """Weight of reinforcement in [0, 1], for all skills or by skill; the same for the other two."""
    response: PerSkill = 1.0
    feature: PerSkill = 1.0

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        for signal in signals:
            require_skills(f"controller.{signal}", getattr(self, signal), skills)
        return super().start(skills, teachers, signals)

    def weights(self, state: State) -> Weights:
        return Weights(
            {skill: {s: at(getattr(self, s), skill) for s in state["signals"]} for skill in state["skills"]},
            {skill: self._shares(state, skill) for skill in state["skills"]},
            self._scale(state),
        )


class WeightSchedule(FrozenOptions):
    """A weight's way from one value to another."""

    start: PerSkill
    """In [0, 1], for all skills or by skill."""
    end: PerSkill
    shape: Literal["linear", "cosine", "step", "exponential"] = "linear"
    """`step` jumps to the end, `exponential` takes the same factor at each tick."""
    over: float = Field(1.0, gt=0, le=1)
    """Share of the stage's steps after which the end is reached."""

    @model_validator(mode="after")
    def _an_exponential_has_a_factor(self) -> WeightSchedule:
        ends = [v for value in (self.start, self.end) for v in (value.values() if isinstance(value, dict) else [value])]
        if self.shape == "exponential" and min(ends) == 0:
            raise ValueError("an exponential course needs a start and an end above 0")
        return self

    def value(self, progress: float, skill: str) -> float:
        """Return the weight when a share `progress` in [0, 1] of the steps is done."""
        a, b, t = at(self.start, skill), at(self.end, skill), min(progress / self.over, 1.0)
        if self.shape == "exponential":
            return float(a ** (1 - t) * b**t)
        way = {"linear": t, "cosine": 0.5 - 0.5 * math.cos(math.pi * t), "step": float(t >= 1)}[self.shape]
        return a + (b - a) * way


# From left to right, or `{start: 0.0, end: 1.0}` would be read as weights of the skills `start` and `end`.
WeightScheduleOrWeight: TypeAlias = Annotated[WeightSchedule | PerSkill, Field(union_mode="left_to_right")]


class ScheduleController(FixedTeacherShares):
    """Weights that follow a course set beforehand: from distillation to reinforcement, unless told otherwise."""

    kind: Literal["schedule"] = "schedule"
    policy: WeightScheduleOrWeight = WeightSchedule(start=0.0, end=1.0)
    """A course, or what stays, for all skills or by skill; the same for the other two."""
    response: WeightScheduleOrWeight = WeightSchedule(start=1.0, end=0.0)
    feature: WeightScheduleOrWeight = WeightSchedule(start=0.25, end=0.0)

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        for signal in signals:
            course = getattr(self, signal)
            if not isinstance(course, WeightSchedule):
                require_skills(f"controller.{signal}", course, skills)
                continue
            for end in ("start", "end"):
                require_skills(f"controller.{signal}.{end}", getattr(course, end), skills)
        return super().start(skills, teachers, signals) | {"progress": 0.0}

    def weights(self, state: State) -> Weights:
        signals = {skill: {s: self._value(s, state, skill) for s in state["signals"]} for skill in state["skills"]}
        return Weights(signals, {skill: self._shares(state, skill) for skill in state["skills"]}, self._scale(state))

    def _value(self, signal: Signal, state: State, skill: str) -> float:
        course: WeightSchedule | PerSkill = getattr(self, signal)
        return course.value(state["progress"], skill) if isinstance(course, WeightSchedule) else at(course, skill)

    def step(self, state: State, seen: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, seen) | {"progress": seen.progress}
        return state, self.weights(state), []


class SequentialController(FixedTeacherShares):
    """Distil until success no longer rises, then reinforce alone: the recipe of most published models.

    A skill whose share of successful attempts has not risen by `gain` for `patience` ticks is done with distillation.
    No plateau counts before a skill has had success of `gain`: there would be nothing to reinforce.
    """

    kind: Literal["sequential"] = "sequential"
    feature: float = Field(0.25, ge=0, le=1)
    """Weight of `feature` while distilling, beside `response` at 1."""
    patience: int = Field(5, gt=0)
    gain: float = Field(0.02, gt=0, lt=1)
    """Success must rise by more than this to count as progress."""
    together: bool = False
    """Whether all skills change over at once, when their mean success no longer rises."""

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        if "policy" not in signals:
            raise ControllerError("controller: sequential ends with reinforcement alone, and there is no policy signal")
        skill_state = {"success": None, "best": 0.0, "stale": 0, "distils": signals != ["policy"]}
        return super().start(skills, teachers, signals) | {
            "progress": {name: dict(skill_state) for name in ([_ALL] if self.together else skills)}
        }

    def weights(self, state: State) -> Weights:
        signals = {}
        for skill in state["skills"]:
            distils = state["progress"][_ALL if self.together else skill]["distils"]
            given = {"policy": 1.0 - distils, "response": float(distils), "feature": self.feature * distils}
            signals[skill] = {s: given[s] for s in state["signals"]}
        return Weights(signals, {skill: self._shares(state, skill) for skill in state["skills"]}, self._scale(state))

    def step(self, state: State, seen: Observation) -> tuple[State, Weights, list[Event]]:
        state, events = self._counted(state, seen), []
        for name, entry in state["progress"].items():
            measured = [
                seen.skills.get(skill, SkillObservation()) for skill in (state["skills"] if name == _ALL else [name])
            ]
            rates = [news.successes / news.attempts for news in measured if news.attempts]
            if not entry["distils"] or not rates:
                continue
            rate = sum(rates) / len(rates)
            entry["success"] = running(entry["success"], rate, 0.5)
            if entry["success"] > entry["best"] + self.gain:
                entry.update(best=entry["success"], stale=0)
            elif entry["best"] >= self.gain:
                entry["stale"] += 1
            if entry["stale"] >= self.patience:
                entry["distils"] = False
                rule = f"no rise above {self.gain:g} for {self.patience} ticks"
                found = f"success {entry['success']:.2f}, best {entry['best']:.2f}"
                events.append(Event(seen.step, "signal off", name, "response", found, rule))
        return state, self.weights(state), events


class RandomController(BaseController):
    """Random weights, drawn anew at each tick: a control that shows what mere variation does (RLW, Lin et al. 2022).

    The signals of a skill get the softmax of standard normal draws; teachers count alike.
    """

    kind: Literal["random"] = "random"
    seed: int | None = None
    """Draws depend on it, the tick and the skill alone. None: the stage's."""

    def seeded(self, seed: int) -> RandomController:
        return self if self.seed is not None else self.model_copy(update={"seed": seed})

    def weights(self, state: State) -> Weights:
        signals = {}
        for skill in state["skills"]:
            rng = random.Random(f"{self.seed}:{state['tick']}:{skill}")
            draws = {signal: math.exp(rng.gauss(0, 1)) for signal in SIGNALS}
            signals[skill] = normalised({signal: draws[signal] for signal in state["signals"]})
        shares = normalised(dict.fromkeys(state["teachers"], 1.0))
        return Weights(signals, dict.fromkeys(state["skills"], shares), self._scale(state))
