"""Simple controllers to compare an adaptive one with: `fixed`, `schedule`, `sequential` and `random`."""

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
from rld.utils.options import FrozenOptions, OptionError

_ALL = "all skills"

_SUCCESS_MEMORY = 0.5
"""Share of the running success rate that one tick keeps."""


class FixedController(FixedTeacherShares):
    """Constant weights: the baseline that an adaptive controller must beat."""

    kind: Literal["fixed"] = "fixed"
    policy: PerSkill = 1.0
    """Weight of reinforcement in [0, 1], for all skills or by skill."""
    response: PerSkill = 1.0
    """Weight of matching the teachers' token distributions."""
    feature: PerSkill = 1.0
    """Weight of matching the teachers' hidden states."""

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
    """A weight that changes from one value to another over a stage."""

    start: PerSkill
    """In [0, 1], for all skills or by skill."""
    end: PerSkill
    """In [0, 1], for all skills or by skill."""
    shape: Literal["linear", "cosine", "step", "exponential"] = "linear"
    """`step` jumps to `end` at the end; `exponential` multiplies by the same factor at each tick."""
    over: float = Field(1.0, gt=0, le=1)
    """Share of the stage's steps after which `end` is reached."""

    @model_validator(mode="after")
    def _an_exponential_has_a_factor(self) -> WeightSchedule:
        ends = [v for value in (self.start, self.end) for v in (value.values() if isinstance(value, dict) else [value])]
        if self.shape == "exponential" and min(ends) == 0:
            raise OptionError("an exponential schedule needs a start and an end above 0", "shape")
        return self

    def value(self, progress: float, skill: str) -> float:
        """Return the weight when a share `progress` in [0, 1] of the steps is done."""
        a, b, t = at(self.start, skill), at(self.end, skill), min(progress / self.over, 1.0)
        if self.shape == "exponential":
            return float(a ** (1 - t) * b**t)
        share = {"linear": t, "cosine": 0.5 - 0.5 * math.cos(math.pi * t), "step": float(t >= 1)}[self.shape]
        return a + (b - a) * share


# From left to right, or `{start: 0.0, end: 1.0}` would be read as weights of the skills `start` and `end`.
WeightScheduleOrWeight: TypeAlias = Annotated[WeightSchedule | PerSkill, Field(union_mode="left_to_right")]


class ScheduleController(FixedTeacherShares):
    """Weights that follow fixed schedules; by default from distillation to reinforcement."""

    kind: Literal["schedule"] = "schedule"
    policy: WeightScheduleOrWeight = WeightSchedule(start=0.0, end=1.0)
    """Weight of reinforcement: a schedule, or one constant for all skills, or a constant by skill."""
    response: WeightScheduleOrWeight = WeightSchedule(start=1.0, end=0.0)
    """Weight of matching the teachers' token distributions."""
    feature: WeightScheduleOrWeight = WeightSchedule(start=0.25, end=0.0)
    """Weight of matching the teachers' hidden states."""

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        for signal in signals:
            weight = getattr(self, signal)
            if not isinstance(weight, WeightSchedule):
                require_skills(f"controller.{signal}", weight, skills)
                continue
            require_skills(f"controller.{signal}.start", weight.start, skills)
            require_skills(f"controller.{signal}.end", weight.end, skills)
        return super().start(skills, teachers, signals) | {"progress": 0.0}

    def weights(self, state: State) -> Weights:
        signals = {skill: {s: self._value(s, state, skill) for s in state["signals"]} for skill in state["skills"]}
        return Weights(signals, {skill: self._shares(state, skill) for skill in state["skills"]}, self._scale(state))

    def _value(self, signal: Signal, state: State, skill: str) -> float:
        weight: WeightSchedule | PerSkill = getattr(self, signal)
        return weight.value(state["progress"], skill) if isinstance(weight, WeightSchedule) else at(weight, skill)

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, observation) | {"progress": observation.progress}
        return state, self.weights(state), []


class SequentialController(FixedTeacherShares):
    """Distil until success no longer rises, then reinforce only: the recipe of most published models.

    A skill whose running success rate has not risen by `gain` for `patience_ticks` ticks changes to reinforcement. It
    does not while its success rate has never reached `gain`: there would be nothing to reinforce.
    """

    kind: Literal["sequential"] = "sequential"
    feature: float = Field(0.25, ge=0, le=1)
    """Weight of `feature` while distilling, beside `response` at 1."""
    patience_ticks: int = Field(5, gt=0)
    """Ticks without progress after which a skill changes to reinforcement."""
    gain: float = Field(0.02, gt=0, lt=1)
    """The success rate must rise by more than this to count as progress."""
    together: bool = False
    """Whether all skills change at once, when their mean success rate no longer rises."""

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
            weights = {"policy": 1.0 - distils, "response": float(distils), "feature": self.feature * distils}
            signals[skill] = {s: weights[s] for s in state["signals"]}
        return Weights(signals, {skill: self._shares(state, skill) for skill in state["skills"]}, self._scale(state))

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        state, events = self._counted(state, observation), []
        for name, entry in state["progress"].items():
            skills = state["skills"] if name == _ALL else [name]
            measured = [observation.skills.get(skill, SkillObservation()) for skill in skills]
            rates = [skill.successes / skill.attempts for skill in measured if skill.attempts]
            if not entry["distils"] or not rates:
                continue
            rate = sum(rates) / len(rates)
            entry["success"] = running(entry["success"], rate, _SUCCESS_MEMORY)
            if entry["success"] > entry["best"] + self.gain:
                entry.update(best=entry["success"], stale=0)
            elif entry["best"] >= self.gain:
                entry["stale"] += 1
            if entry["stale"] >= self.patience_ticks:
                entry["distils"] = False
                reason = (
                    f"the student succeeded in {entry['success']:.0%} of its attempts, at best in {entry['best']:.0%}"
                )
                rule = f"no rise by more than {self.gain:.0%} for {self.patience_ticks} ticks"
                events.append(Event(observation.step, "signal off", name, "response", reason, rule))
        return state, self.weights(state), events


class RandomController(BaseController):
    """Random weights, drawn at each tick: a control that shows the effect of variation alone (RLW, Lin et al. 2022).

    The signals of a skill get the softmax of standard normal draws; all teachers have equal shares.
    """

    kind: Literal["random"] = "random"
    seed: int | None = None
    """The weights depend on it, the tick and the skill only. None: the stage's seed."""

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
