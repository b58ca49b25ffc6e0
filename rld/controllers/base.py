"""What all controllers share: their base class, values per skill, and the magnitudes of the signals.

A controller is a frozen model of its options. `start` gives its state (plain JSON), `weights` reads the weights off a
state, and `step` turns what was measured since the last tick into the next state, its weights, and the events worth
telling. Nothing here sees a tensor, so every rule is tested without training.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
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
"""How much a signal counts, relative to the others, before anything is known."""

_VERSION = 9
"""Of every controller's state."""

_MEMORY = 0.8
"""Share of the running gradient norms that a tick keeps."""

_REACH = 10.0
"""The most that magnitudes are evened out by."""


class BaseController(FrozenOptions):
    """A controller without the rule itself: `weights`, and what `step` adds to the state."""

    every: int = Field(5, gt=0)
    """Optimiser steps between ticks; between two ticks the weights stand still."""
    heartbeat: int = Field(20, ge=0)
    """Ticks between looks at a teacher whose weight is 0, so that it can come back. 0: what is off stays unseen."""
    even_out: bool = True
    """Scale `response` and `feature` so that their gradients are as large as the policy's, within a factor of 10."""

    @property
    def required_measurements(self) -> RequiredMeasurements:
        """What is to be measured beyond counts, divergences and the norms of gradients."""
        return RequiredMeasurements()

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        """Return the state before the first tick.

        Raises:
            ControllerError: a value per skill leaves a skill out.
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
        """Return the controller for a stage with this seed, which matters to one that draws numbers."""
        return self

    def resume(self, state: State, teachers: list[str]) -> State:
        """Return a saved state for other teachers: those that left are dropped, new ones enter as at the start."""
        return {**state, "teachers": teachers}

    def weights(self, state: State) -> Weights:
        raise NotImplementedError

    def step(self, state: State, seen: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, seen)
        return state, self.weights(state), []

    def _counted(self, state: State, seen: Observation) -> State:
        """A copy of the state, one tick later, with the running norms of the gradients."""
        state = copy.deepcopy(state)
        state["tick"] += 1
        for signal, norm in seen.gradients.items():
            if norm is not None and math.isfinite(norm) and norm > 0:
                before = state["gradients"].get(signal, norm)
                state["gradients"][signal] = _MEMORY * before + (1 - _MEMORY) * norm
        return state

    def _scale(self, state: State) -> dict[str, float]:
        """Factors that make the signals' gradients as large as the policy's."""
        gradients = state["gradients"]
        policy = gradients.get("policy")
        if not self.even_out or not policy:
            return {}
        return {
            signal: clip(policy / gradients[signal], 1 / _REACH, _REACH)
            for signal in SIGNALS
            if signal != "policy" and gradients.get(signal)
        }


class FixedTeacherShares(BaseController):
    """A controller whose teachers have shares chosen beforehand."""

    teachers: dict[str, Odds | dict[str, Odds]] = {}
    """Relative weight per teacher, or per teacher and skill; one that is not named counts 1. They are normalised."""

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        for name, weight in self.teachers.items():
            require_skills(f"controller.teachers.{name}", weight, skills)
            if name not in teachers:  # no error: an optional teacher may have been left out
                warnings.warn(f"controller.teachers.{name}: no such teacher{hint(name, teachers)}", stacklevel=2)
        return super().start(skills, teachers, signals)

    def _shares(self, state: State, skill: str) -> dict[str, float]:
        return normalised({name: at(self.teachers.get(name, 1.0), skill) for name in state["teachers"]})


def at(value: PerSkill, skill: str) -> float:
    """Return what a value per skill says of `skill`."""
    return value[skill] if isinstance(value, dict) else value


def require_skills(what: str, value: Any, skills: list[str]) -> None:
    """Refuse a value per skill that leaves one of `skills` out.

    Raises:
        ControllerError: names the option and the skill.
    """
    missing = [skill for skill in skills if isinstance(value, dict) and skill not in value]
    if missing:
        raise ControllerError(f"{what} has no value for skill {missing[0]!r}; name every skill, or give one number")


def normalised(odds: Mapping[str, float]) -> dict[str, float]:
    """Return shares that sum to 1; all 0 where all odds are."""
    total = sum(odds.values())
    return {name: value / total if total else 0.0 for name, value in odds.items()}


def running(before: float | None, value: float, memory: float) -> float:
    """Return a running mean after one more value, of which it keeps the share `memory`; before any, None."""
    return value if before is None else memory * before + (1 - memory) * value


def clip(x: float, low: float, high: float) -> float:
    """Return x within bounds, the lower one for what is no finite number."""
    return min(max(x, low), high) if math.isfinite(x) else low
