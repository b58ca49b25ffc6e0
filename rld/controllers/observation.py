"""What a controller reads and returns: observations of skills and teachers, and weights. Plain numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from rld.types import Event, Signal
from rld.utils.flops import SourceFlops


@dataclass(frozen=True)
class TeacherInfo:
    """What a controller's runtime needs to know of a teacher."""

    name: str
    skills: tuple[str, ...] | None = None
    """The skills that it teaches; None: all."""
    verified: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Per skill, how many probe prompts it answered correctly, and how many there were."""

    def teaches(self, skill: str) -> bool:
        return self.skills is None or skill in self.skills

    def probed_accuracy(self, skill: str) -> float:
        """Return the share of the probe prompts of a skill that it answered correctly; 1 where it was not probed."""
        num_correct, num_probed = self.verified.get(skill, (0, 0))
        return num_correct / num_probed if num_probed else 1.0


@dataclass(frozen=True)
class TeacherObservation:
    """One teacher on one skill since the last tick. Counts are over all processes."""

    divergence: float | None = None
    """Mean divergence of the student from this teacher, in nats per token; None when it was not computed."""
    probe_correct: int = 0
    """Probe prompts that the teacher answered correctly before the stage, of `probe_size`."""
    probe_size: int = 0
    """0: the teacher was not probed on this skill."""
    teaches: bool = True
    """False where the user said that the teacher does not teach this skill."""
    prompts: int = 0
    """Training prompts that the gate asked it to answer; 0 without a gate."""
    correct: int = 0
    """Of these, those that it answered correctly."""
    attempts: int = 0
    """The student's attempts at prompts that this teacher answered correctly, or is assumed to."""
    successes: int = 0
    resampled: int = 0
    """Of the prompts that it answered correctly, those for which a sampled answer was requested too."""
    resampled_correct: int = 0
    """Of these, those whose sampled answer was correct."""


@dataclass(frozen=True)
class GradientStats:
    """Statistics of the gradients of a skill's signals, each that of the signal's unweighted loss.

    Each group of completions is one sample. A signal that was not measured, or has no gradient, is left out.
    """

    inner_products: Mapping[Signal, Mapping[Signal, float]]
    """Of the signals' mean gradients, each with each and with itself."""
    noise: Mapping[Signal, float]
    """Squared standard error of a mean gradient: the variance of the samples' mean, summed over all directions."""
    gold_cosine: Mapping[Signal, float] = field(default_factory=dict)
    """Cosine between a mean gradient and that of the gold answers' negative log-likelihood; empty if not required."""

    def is_finite(self) -> bool:
        """Tell whether all statistics are finite."""
        products = (value for row in self.inner_products.values() for value in row.values())
        return all(map(math.isfinite, (*products, *self.noise.values(), *self.gold_cosine.values())))


class RequiredMeasurements(NamedTuple):
    """Measurements that cost something, taken only for a controller that requires them."""

    gradients: bool = False
    """Statistics of the signals' gradients, from the update before each tick."""
    gold_rows: int = 0
    """Rows per skill with whose gold answers gradients are compared."""
    target: tuple[str, ...] = ()
    """Skills with whose gradient that of each skill is compared, on gold answers."""
    resampled_answers: bool = False
    """A second, sampled answer of teachers to some prompts that they answered correctly."""


@dataclass(frozen=True)
class SkillObservation:
    """One skill since the last tick. Counts are over all processes."""

    attempts: int = 0
    successes: int = 0
    groups: int = 0
    informative_groups: int = 0
    """Groups whose completions got different rewards: the only ones with a policy gradient."""
    teachers: Mapping[str, TeacherObservation] = field(default_factory=dict)
    level: float | None = None
    """Mean level of the prompts of the attempts; None without attempts."""
    gold_answers: int = 0
    """Gold answers that were learnt by themselves, of prompts without completions."""
    attempt_tokens: int = 0
    """Tokens of the attempts, but for those at prompts that were replaced."""
    success_tokens: int = 0
    """Tokens of the successful attempts, but for those at prompts that were replaced."""
    audited: int = 0
    """Successes that a trusted reward checked."""
    audit_passed: int = 0
    """Of these, those that it found correct as well."""
    sampled: int = 0
    """Completions that the student sampled: the attempts, and those to which the verifier does not apply."""
    transfer: float | None = None
    """Cosine between the gradient of its gold answers and that of the target skills'; None if not required."""
    gradients: GradientStats | None = None
    """From the update before the tick; None if the controller does not require them."""

    @property
    def gold_share(self) -> float:
        """Share of the gold answers among these and the attempts, in [0, 1]; 0 without both."""
        return self.gold_answers / max(self.gold_answers + self.attempts, 1)


@dataclass(frozen=True)
class Observation:
    """All that a controller is shown at a tick."""

    step: int
    skills: Mapping[str, SkillObservation]
    gradients: Mapping[str, float | None] = field(default_factory=dict)
    """Root-mean-square gradient of each signal's unweighted loss with respect to the student's last hidden states."""
    progress: float = 0.0
    """Share of the stage's optimiser steps that are done, in [0, 1]."""
    flops: SourceFlops = field(default_factory=SourceFlops)
    """Operations since the last tick, over all processes."""

    @property
    def sampled_share(self) -> float:
        """Share of the attempts among these and the gold answers of all skills, in [0, 1]; 1 without gold answers."""
        num_gold = sum(skill.gold_answers for skill in self.skills.values())
        return 1 - num_gold / max(num_gold + sum(skill.attempts for skill in self.skills.values()), 1)


@dataclass(frozen=True)
class Weights:
    """What a controller decides, used unchanged until the next tick.

    `signals[skill][signal]` and `teachers[skill][teacher]` are in [0, 1]; a skill's teachers sum to 1, or all are 0.
    `scale[signal]` balances the magnitudes of the signals' gradients and multiplies every skill's weight.
    """

    signals: Mapping[str, Mapping[str, float]]
    teachers: Mapping[str, Mapping[str, float]]
    scale: Mapping[str, float] = field(default_factory=dict)
    allocation: Mapping[str, float] | None = None
    """Share of the prompts that each skill should get, summing to 1. None: the curriculum's own shares."""
    gold_share: Mapping[str, float] = field(default_factory=dict)
    """Share of each skill's prompts whose gold answers are learnt, in [0, 1]; empty: there are no such prompts."""
    teacher_answers: frozenset[str] = frozenset()
    """Skills of which these prompts have a correct answer of a teacher in place of their row's."""
    teacher_share: Mapping[str, float] = field(default_factory=dict)
    """Of skills whose response target is softened, the share of the teachers in it, in (0, 1): the target is
    `softmax((1 - share) log student + share log teacher)`."""


class Controller(Protocol):
    """Turns measurements into weights. It changes nothing: plain data in, plain data out; the state is JSON."""

    @property
    def kind(self) -> str:
        """Its kind in recipes."""

    @property
    def decide_every(self) -> int:
        """Optimiser steps between two calls of `step`."""

    @property
    def recheck_every(self) -> int:
        """Ticks between two measurements of teachers whose weight is 0; 0: none."""

    @property
    def required_measurements(self) -> RequiredMeasurements:
        """What it requires beyond counts, divergences and the norms of gradients."""

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> dict[str, Any]:
        """Return the state before the first tick; its `version` is that of the state's format."""

    def resume(self, state: dict[str, Any], teachers: list[str]) -> dict[str, Any]:
        """Return a saved state for other teachers than it was saved with."""

    def weights(self, state: dict[str, Any]) -> Weights:
        """Return the weights that a state stands for."""

    def step(self, state: dict[str, Any], observation: Observation) -> tuple[dict[str, Any], Weights, list[Event]]:
        """Return the state one tick later, its weights, and the events of the tick."""
