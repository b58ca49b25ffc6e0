"""What a controller reads and returns: observations of skills and teachers, and the weights that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from rld.types import Event, Signal


@dataclass(frozen=True)
class TeacherInfo:
    """What a controller's runtime has to know of a teacher."""

    name: str
    skills: tuple[str, ...] | None = None
    """The skills that it teaches; None: all."""
    verified: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Per skill, the probe prompts that it answers correctly, and how many were asked."""

    def teaches(self, skill: str) -> bool:
        return self.skills is None or skill in self.skills


@dataclass(frozen=True)
class TeacherObservation:
    """One teacher on one skill since the last tick. Sums are over all processes."""

    divergence: float | None = None
    """Mean divergence of the student from this teacher, in nats per token; None when it was not computed."""
    verified: int = 0
    """Probe prompts that the teacher itself answers correctly, of `probed`."""
    probed: int = 0
    """0: the teacher's competence on this skill is unknown."""
    teaches: bool = True
    """False where the user said that the teacher does not teach this skill."""
    asked: int = 0
    """Training prompts that it was asked to answer before it may teach on them; 0 without a gate."""
    right: int = 0
    """Of these, those that it answered rightly."""
    attempts: int = 0
    """The student's attempts at prompts that this teacher answered rightly."""
    successes: int = 0
    again: int = 0
    """Of the prompts that it answered rightly, those that it was asked once more, for a sampled answer."""
    right_again: int = 0
    """Of these, those that it answered rightly again."""


@dataclass(frozen=True)
class GradientStats:
    """How a skill's signals pull at the student: statistics of the gradients of their unweighted losses.

    Each group of completions is one sample. A signal that was not measured, or has no gradient, is left out.
    """

    inner: Mapping[Signal, Mapping[Signal, float]]
    """Inner products of the signals' mean gradients, each with each and with itself."""
    noise: Mapping[Signal, float]
    """Squared standard error of a mean gradient: the variance of the samples' mean, summed over all directions."""
    aligned: Mapping[Signal, float] = field(default_factory=dict)
    """Cosine between a mean gradient and that of the gold answers' negative log-likelihood; empty if not asked for."""


class RequiredMeasurements(NamedTuple):
    """Measurements that cost something, taken only for a controller that asks for them."""

    pulls: bool = False
    gold: int = 0
    """Rows per skill whose gold answers show which pull is right."""
    again: bool = False
    """Whether the gate asks teachers for sampled answers too."""


@dataclass(frozen=True)
class SkillObservation:
    """One skill since the last tick. Counts are over all processes."""

    attempts: int = 0
    successes: int = 0
    groups: int = 0
    informative: int = 0
    """Groups whose completions got different rewards: the only ones with a policy gradient."""
    teachers: Mapping[str, TeacherObservation] = field(default_factory=dict)
    audited: int = 0
    """Successes that a trusted reward has checked."""
    genuine: int = 0
    """Of these, those that it found right as well."""
    pulls: GradientStats | None = None
    """From the update before the tick; None if the controller does not ask for them."""


@dataclass(frozen=True)
class Observation:
    """All that a controller sees at a tick."""

    step: int
    skills: Mapping[str, SkillObservation]
    gradients: Mapping[str, float | None] = field(default_factory=dict)
    """Root-mean-square gradient of each signal's unweighted loss with respect to the student's last hidden states."""
    progress: float = 0.0
    """Share of the stage's optimiser steps that are done, in [0, 1]."""


@dataclass(frozen=True)
class Weights:
    """What a controller decides, used unchanged until the next tick.

    `signals[skill][signal]` and `teachers[skill][teacher]` are in [0, 1]; a skill's teachers sum to 1, or all are 0.
    `scale[signal]` evens out the signals' magnitudes and multiplies every skill's weight.
    """

    signals: Mapping[str, Mapping[str, float]]
    teachers: Mapping[str, Mapping[str, float]]
    scale: Mapping[str, float] = field(default_factory=dict)
    allocation: Mapping[str, float] | None = None
    """Share of the prompts that each skill should get, summing to 1. None: as the curriculum likes."""


class Controller(Protocol):
    """Turns measured progress into weights. Pure: plain data in, plain data out; the state is JSON."""

    @property
    def kind(self) -> str:
        """Its name in recipes."""

    @property
    def every(self) -> int:
        """Optimiser steps between two calls of `step`."""

    @property
    def heartbeat(self) -> int:
        """Ticks between looks at a teacher whose weight is 0; 0: none."""

    @property
    def needs(self) -> RequiredMeasurements:
        """What is to be measured for it beyond counts, divergences and the norms of gradients."""

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> dict[str, Any]:
        """The state before the first tick; its `version` tells states of another make apart."""

    def resume(self, state: dict[str, Any], teachers: list[str]) -> dict[str, Any]:
        """A saved state for other teachers than it was saved with."""

    def weights(self, state: dict[str, Any]) -> Weights: ...

    def step(self, state: dict[str, Any], seen: Observation) -> tuple[dict[str, Any], Weights, list[Event]]: ...
