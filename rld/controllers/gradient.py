"""Controllers that weigh signals by statistics of their gradients: `gradient_noise` and `gradient_alignment`.

Both keep the logarithm of a weight per skill and signal, and change it by capped steps. Teachers have fixed shares
within a signal, and the stage's gate applies as with every controller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from rld.controllers.base import PRIOR, FixedTeacherShares, State, clip, normalised, running
from rld.controllers.observation import GradientStats, Observation, RequiredMeasurements, SkillObservation, Weights
from rld.types import Event, Signal

STATISTICS_MEMORY = 0.8
"""Share of the running noise and bias that one tick keeps: about five ticks are averaged."""

INFORMATIVE_MEMORY = 0.5
"""Share of the running share of informative groups that one tick keeps."""

MIN_INFORMATIVE = 0.05
"""Running share of informative groups below which the policy is taken to have no gradient."""

SIMPLEX_SWEEPS = 100
"""Passes over all pairs of signals; for two signals one is exact, for three a few dozen reach float precision."""


class _GradientController(FixedTeacherShares):
    """The state that both controllers share, and the weights that it stands for."""

    prior: dict[Signal, Annotated[float, Field(gt=0)]] = PRIOR
    """Weights to start from, relative to each other; a signal that is not named counts 1."""
    max_log_step: float = Field(0.7, gt=0)
    """The most that the logarithm of a weight changes by in a tick, before normalisation."""

    @property
    def required_measurements(self) -> RequiredMeasurements:
        return RequiredMeasurements(gradients=True)

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        state = super().start(skills, teachers, signals)
        return state | {"skills": {skill: {"log_weights": self._log_prior(signals)} for skill in skills}}

    def _log_prior(self, signals: list[Signal]) -> dict[str, float]:
        """Return the logarithms of the weights to start from."""
        shares = normalised({signal: self.prior.get(signal, 1.0) for signal in signals})
        return {signal: math.log(share) for signal, share in shares.items()}

    def weights(self, state: State) -> Weights:
        return Weights(
            {skill: _shares(entry["log_weights"]) for skill, entry in state["skills"].items()},
            {skill: self._shares(state, skill) for skill in state["skills"]},
            self._scale(state),
        )

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, observation)
        scale = self._scale(state)
        for skill, entry in state["skills"].items():
            changes = self._changes(entry, observation.skills.get(skill, SkillObservation()), scale)
            if changes:
                moved = {signal: log + changes[signal] for signal, log in entry["log_weights"].items()}
                entry["log_weights"] = _sum_to_one(moved)
        return state, self.weights(state), []

    def _changes(self, entry: State, measured: SkillObservation, scale: Mapping[str, float]) -> dict[str, float]:
        """Update a skill's statistics in `entry`, and return the changes of its log-weights; empty: none changes."""
        raise NotImplementedError


class GradientNoiseController(_GradientController):
    """Weights that make the joint gradient the best estimate of the policy's: little noise, and little bias.

    The policy's gradient is unbiased but noisy; the others have little noise but another mean. With the mean gradients
    g of the last updates, their variances s2 and the biases b = g - g_policy, the target minimises
    `sum w_s^2 s2_s + |sum w_s b_s|^2` over weights that sum to 1; for two signals
    `w_response = s2_policy / (s2_policy + s2_response + |b|^2)` (as in GAC, Hu et al. 2026, arXiv 2605.26184). Where no
    group is informative the policy's target is `floor`. Each tick goes the share `step_size` of the way, in log space.
    Without `balance_gradients` a bias is as large as the loss is scaled.
    """

    kind: Literal["gradient_noise"] = "gradient_noise"
    step_size: float = Field(0.5, gt=0, le=1)
    """Share of the way to the target, in log space, that a tick takes."""
    floor: float = Field(0.02, gt=0, lt=0.3)
    """Weight that every signal keeps: one of weight 0 would not be measured."""

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        state = super().start(skills, teachers, signals)
        for entry in state["skills"].values():
            entry.update(informative=None, noise={}, bias={})
        return state

    def _changes(self, entry: State, measured: SkillObservation, scale: Mapping[str, float]) -> dict[str, float]:
        if measured.groups:
            share = measured.informative_groups / measured.groups
            entry["informative"] = running(entry["informative"], share, INFORMATIVE_MEMORY)
        if measured.gradients is not None:
            self._measure(entry, measured.gradients, scale)
        target = self._target(entry)
        if not target or not measured.groups:
            return {}
        changes = {}
        for signal, weight in target.items():
            floored = self.floor + (1 - len(target) * self.floor) * weight
            step = self.step_size * (math.log(floored) - entry["log_weights"][signal])
            changes[signal] = clip(step, -self.max_log_step, self.max_log_step)
        return changes

    def _measure(self, entry: State, gradients: GradientStats, scale: Mapping[str, float]) -> None:
        """Update the running noise and bias of the signals in `entry`.

        Both estimates may be below 0; they are unbiased if the noises of the signals are independent.
        """
        inner = gradients.inner_products
        signals = [signal for signal in entry["log_weights"] if signal in gradients.noise and signal in inner]
        if "policy" not in signals:
            return
        size = {signal: scale.get(signal, 1.0) for signal in signals}
        noise = {s: size[s] ** 2 * gradients.noise[s] for s in signals}
        products = {s: {t: size[s] * size[t] * inner[s][t] for t in signals} for s in signals}
        numbers = [*noise.values(), *(value for row in products.values() for value in row.values())]
        if not all(math.isfinite(number) for number in numbers):
            return
        for s in signals:
            entry["noise"][s] = running(entry["noise"].get(s), noise[s], STATISTICS_MEMORY)
            for t in signals:
                if "policy" in (s, t):
                    continue
                raw = products[s][t] - products[s]["policy"] - products[t]["policy"] + products["policy"]["policy"]
                # Means deviate by their noise: the policy's is in both biases, and a square has the signal's own too.
                bias = raw - noise["policy"] - (noise[s] if s == t else 0.0)
                row = entry["bias"].setdefault(s, {})
                row[t] = running(row.get(t), bias, STATISTICS_MEMORY)

    def _target(self, entry: State) -> dict[str, float]:
        """Return the weights to move to; empty while there is nothing to compare."""
        shares = _shares(entry["log_weights"])
        others = {signal: share for signal, share in shares.items() if signal != "policy"}
        if "policy" not in shares or not others:
            return {}
        if entry["informative"] is not None and entry["informative"] < MIN_INFORMATIVE:
            return {"policy": 0.0} | normalised(others)
        measured = [signal for signal in shares if signal in entry["noise"]]
        if len(measured) < 2:
            return {}
        best = minimise_on_simplex([[self._squared_error(entry, s, t) for t in measured] for s in measured])
        total = sum(shares[signal] for signal in measured)  # signals that were not measured keep their weights
        return shares | {signal: total * w for signal, w in zip(measured, best, strict=True)}

    def _squared_error(self, entry: State, s: str, t: str) -> float:
        """Return an entry of the matrix of squared errors, which is positive semidefinite."""
        value: float = max(entry["noise"][s], 0.0) if s == t else 0.0
        if "policy" in (s, t) or t not in entry["bias"].get(s, {}):
            return value
        bound = math.sqrt(max(entry["bias"][s][s], 0.0) * max(entry["bias"][t][t], 0.0))
        return value + clip(entry["bias"][s][t], -bound, bound)


class GradientAlignmentController(_GradientController):
    """Weights follow how well each signal's gradient agrees with that of gold answers, which are not trained on.

    With h_s the cosine between a signal's gradient and that of the gold answers' negative log-likelihood, each tick
    changes the logarithm of a weight by
    `clip(cosine_gain * h_s, -max_log_step, max_log_step) - decay * (log w_s - log prior_s)` (a one-step hypergradient,
    as in DoGE, Fan et al. 2024, and AMFT, arXiv 2508.06944). Where a prompt has many correct answers the one gold
    answer says little. A skill without gold answers keeps its weights.
    """

    kind: Literal["gradient_alignment"] = "gradient_alignment"
    cosine_gain: float = Field(0.5, gt=0, le=1)
    """Change of the logarithm of a weight in a tick, for a cosine of 1."""
    gold_rows: int = Field(16, gt=0, le=100_000)
    """Rows per skill whose gold answers are used: training questions, never held-out ones."""
    decay: float = Field(0.1, gt=0, le=1)
    """Share of the way back to the prior, in log space, that a tick takes; it bounds the weights."""

    @property
    def required_measurements(self) -> RequiredMeasurements:
        return RequiredMeasurements(gradients=True, gold_rows=self.gold_rows)

    def _changes(self, entry: State, measured: SkillObservation, scale: Mapping[str, float]) -> dict[str, float]:
        if measured.gradients is None:
            return {}
        logs = entry["log_weights"]
        cosines = {s: h for s, h in measured.gradients.gold_cosine.items() if s in logs and math.isfinite(h)}
        if not cosines:
            return {}
        prior = self._log_prior(list(logs))
        return {
            signal: clip(self.cosine_gain * cosines.get(signal, 0.0), -self.max_log_step, self.max_log_step)
            - self.decay * (log - prior[signal])
            for signal, log in logs.items()
        }


def minimise_on_simplex(matrix: list[list[float]]) -> list[float]:
    """Return the weights, at least 0 and summing to 1, that minimise `w' A w` for a positive semidefinite A.

    Weight is moved between two entries at a time, each time to the exact minimum on that line.
    """
    indices = range(len(matrix))
    weights = [1.0 / len(matrix) for _ in indices]
    for _ in range(SIMPLEX_SWEEPS):
        for i, j in itertools.combinations(indices, 2):
            slope = sum((matrix[j][k] - matrix[i][k]) * weights[k] for k in indices)
            curvature = matrix[i][i] + matrix[j][j] - 2 * matrix[i][j]
            if slope:
                move = -slope / curvature if curvature > 0 else math.copysign(1.0, -slope)
                move = clip(move, -weights[j], weights[i])
                weights[i], weights[j] = weights[i] - move, weights[j] + move
    return weights


def _sum_to_one(logs: Mapping[str, float]) -> dict[str, float]:
    """Return log-weights, normalised so that the weights sum to 1."""
    highest = max(logs.values())
    total = highest + math.log(sum(math.exp(log - highest) for log in logs.values()))
    return {signal: log - total for signal, log in logs.items()}


def _shares(logs: Mapping[str, float]) -> dict[str, float]:
    return normalised({signal: math.exp(log) for signal, log in logs.items()})
