"""The base class of controllers, options per skill, and the balance of the signals' gradients.

A controller is a frozen model of its options. `start` returns its first state (plain JSON), `weights` the weights that
a state stands for, and `step` turns the measurements since the last tick into the next state, its weights, and events.
Nothing here uses tensors, so every rule is tested without training.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeAlias

from pydantic import Field

from rld.controllers.observation import Observation, RequiredMeasurements, Weights
from rld.errors import ControllerError
from rld.types import SIGNALS, Event, Signal
from rld.utils.options import FrozenOptions
from rld.utils.suggestions import hint

State = dict[str, Any]

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]

Odds: TypeAlias = Annotated[float, Field(ge=0)]

PerSkill: TypeAlias = Share | dict[str, Share]
"""One value for all skills, or one for each by name."""

PRIOR: dict[Signal, float] = {"policy": 1.0, "response": 1.0, "feature": 0.1}
"""How much a signal counts, relative to the others, before anything was measured."""

_VERSION = 9
"""Of the format of every controller's state; a checkpoint of another version is refused."""

GRADIENT_MEMORY = 0.8
"""Share of the running gradient norms that one tick keeps: about five ticks are averaged."""

MAX_SCALE = 10.0
"""Factor by which gradients are balanced at most: noise in a gradient that is almost 0 is not blown up."""


class BaseController(FrozenOptions):
    """Options and state of every controller; a subclass adds `weights`, and its rule in `step`."""

    decide_every: int = Field(5, gt=0)
    """Optimiser steps between two decisions (ticks); in between the weights stay as they are."""
    recheck_every: int = Field(20, ge=0)
    """Ticks between two measurements of teachers whose weight is 0, so that they can come back. 0: never."""
    balance_gradients: bool = True
    """Scale `response` and `feature` so that their gradients are as large as the policy's, within a factor of 10."""

    @property
    def required_measurements(self) -> RequiredMeasurements:
        """What it requires beyond counts, divergences and the norms of gradients."""
        return RequiredMeasurements()

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        """Return the state before the first tick.

        Raises:
            ControllerError: a value per skill is missing for a skill, or a name is no skill or teacher.
        """
        return {
            "version": _VERSION,
            "tick": 0,
            "gradients": {},
            "skills": skills,
            "teachers": teachers,
            "signals": signals,
        }

    def seeded(self, seed: int) -> Self:
        """Return the controller for a stage with this seed; one that draws random numbers uses it."""
        return self

    def for_teachers(self, teachers: Sequence[str]) -> Self:
        """Return the controller for these of the teachers that it knows; optional ones may be down."""
        return self

    def resume(self, state: State, teachers: list[str]) -> State:
        """Return a saved state for other teachers: those that left are dropped, new ones start as in `start`."""
        return {**state, "teachers": teachers}

    def weights(self, state: State) -> Weights:
        """Return the weights that a state stands for."""
        raise NotImplementedError

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        """Return the state one tick later, its weights, and the events of the tick."""
        state = self._counted(state, observation)
        return state, self.weights(state), []

    def _counted(self, state: State, observation: Observation) -> State:
        """Return a copy of the state, one tick later, with the running norms of the gradients."""
        state = copy.deepcopy(state)
        state["tick"] += 1
        for signal, norm in observation.gradients.items():
            if norm is not None and math.isfinite(norm) and norm > 0:
                before = state["gradients"].get(signal, norm)
                state["gradients"][signal] = GRADIENT_MEMORY * before + (1 - GRADIENT_MEMORY) * norm
        return state

    def _scale(self, state: State) -> dict[str, float]:
        """Return the factors that make the signals' gradients as large as the policy's."""
        gradients = state["gradients"]
        policy = gradients.get("policy")
        if not self.balance_gradients or not policy:
            return {}
        return {
            signal: clip(policy / gradients[signal], 1 / MAX_SCALE, MAX_SCALE)
            for signal in SIGNALS
            if signal != "policy" and gradients.get(signal)
        }


class FixedTeacherShares(BaseController):
    """A controller whose teachers have fixed shares."""

    teachers: dict[str, Odds | dict[str, Odds]] = {}
    """Relative weight per teacher, or per teacher and skill; one that is not named counts 1."""

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        for name, weight in self.teachers.items():
            require_skills(f"controller.teachers.{name}", weight, skills)
            if name not in teachers:
                raise ControllerError(f"controller.teachers.{name}: no such teacher{hint(name, teachers)}")
        return super().start(skills, teachers, signals)

    def for_teachers(self, teachers: Sequence[str]) -> Self:
        weights = {name: weight for name, weight in self.teachers.items() if name in teachers}
        return self.model_copy(update={"teachers": weights})

    def _shares(self, state: State, skill: str) -> dict[str, float]:
        return normalised({name: at(self.teachers.get(name, 1.0), skill) for name in state["teachers"]})


def at(value: PerSkill, skill: str) -> float:
    """Return the value of one skill."""
    return value[skill] if isinstance(value, dict) else value


def require_skills(option: str, value: Any, skills: list[str]) -> None:
    """Check that a value per skill has one for each of `skills`.

    Raises:
        ControllerError: one is missing, or a name is no skill; the error names the option and the skill.
    """
    missing = [skill for skill in skills if isinstance(value, dict) and skill not in value]
    if missing:
        raise ControllerError(f"{option} has no value for skill {missing[0]!r}; name every skill, or give one number")
    unknown = [name for name in value if name not in skills] if isinstance(value, dict) else []
    if unknown:
        raise ControllerError(f"{option}: {unknown[0]!r} is no skill{hint(unknown[0], skills)}")


def normalised(odds: Mapping[str, float]) -> dict[str, float]:
    """Return shares that sum to 1; all 0 if all odds are 0."""
    total = sum(odds.values())
    return {name: value / total if total else 0.0 for name, value in odds.items()}


def running(before: float | None, value: float, memory: float) -> float:
    """Return a running mean after one more value; it keeps the share `memory`. None: this is the first value."""
    return value if before is None else memory * before + (1 - memory) * value


def clip(x: float, low: float, high: float) -> float:
    """Return x within bounds; the lower bound if x is not finite."""
    return min(max(x, low), high) if math.isfinite(x) else low
