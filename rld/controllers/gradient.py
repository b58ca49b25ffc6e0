"""Controllers that go by the directions in which the signals pull: `noise` and `probe`.

Both keep a log-weight per skill and signal and move it by capped steps; teachers within a signal have shares chosen
beforehand, and the stage's gate on top.
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

_MEMORY = 0.8
"""Share of a running mean that a tick keeps."""

_BLIND = 0.05
"""Running share of informative groups below which the policy has no gradient to speak of."""

_SWEEPS = 100
"""Passes over all pairs of signals; for two signals one is exact."""


class _GradientController(FixedTeacherShares):
    """What the two have in common: their state, and the weights that it stands for."""

    prior: dict[Signal, Annotated[float, Field(gt=0)]] = PRIOR
    """Weights to start from, relative to each other; a signal that is not named counts 1."""
    rate: float = Field(0.5, gt=0, le=1)
    """Share of the way to its target that a tick takes (`noise`), or what a cosine is multiplied by (`probe`)."""
    cap: float = Field(0.7, gt=0)
    """The most that a tick changes the log of a weight by, before normalisation."""

    @property
    def required_measurements(self) -> RequiredMeasurements:
        return RequiredMeasurements(gradients=True)

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        state = super().start(skills, teachers, signals)
        return state | {"skills": {skill: {"log": self._prior(signals)} for skill in skills}}

    def _prior(self, signals: list[Signal]) -> dict[str, float]:
        """Logs of the weights to start from."""
        shares = normalised({signal: self.prior.get(signal, 1.0) for signal in signals})
        return {signal: math.log(share) for signal, share in shares.items()}

    def weights(self, state: State) -> Weights:
        return Weights(
            {skill: _shares(entry["log"]) for skill, entry in state["skills"].items()},
            {skill: self._shares(state, skill) for skill in state["skills"]},
            self._scale(state),
        )

    def step(self, state: State, seen: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, seen)
        scale = self._scale(state)
        for skill, entry in state["skills"].items():
            moves = self._moves(entry, seen.skills.get(skill, SkillObservation()), scale)
            if moves:
                entry["log"] = {signal: log + moves[signal] for signal, log in entry["log"].items()}
                _normalise(entry["log"])
        return state, self.weights(state), []

    def _moves(self, entry: State, news: SkillObservation, scale: Mapping[str, float]) -> dict[str, float]:
        """Take in what was seen of a skill, and return by how much its log-weights change; none stand still."""
        raise NotImplementedError


class GradientNoiseController(_GradientController):
    """Weights that make the joint gradient the best estimate of the policy's: little noise, and little bias.

    The policy's gradient is right on average but noisy, the others' are steady but lead elsewhere. With the gradients
    g of the last updates, their variance s2 and the bias b = g - g_policy, weights are what minimises
    `sum w_s^2 s2_s + |sum w_s b_s|^2` over the simplex; for two signals
    `w_response = s2_policy / (s2_policy + s2_response + |b|^2)` (in the way of GAC,
    Hu et al. 2026, arXiv 2605.26184). Where no group is
    informative the policy goes to its floor. Each tick goes the share `rate` of the way, in log space. Without
    `even_out` a bias is as large as the loss is scaled.
    """

    kind: Literal["noise"] = "noise"
    floor: float = Field(0.02, gt=0, lt=0.3)
    """Weight that every signal keeps, without which it would not be measured."""

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        state = super().start(skills, teachers, signals)
        for entry in state["skills"].values():
            entry.update(informative=None, noise={}, bias={})
        return state

    def _moves(self, entry: State, news: SkillObservation, scale: Mapping[str, float]) -> dict[str, float]:
        if news.groups:
            entry["informative"] = running(entry["informative"], news.informative_groups / news.groups, 0.5)
        if news.gradients is not None:
            self._measure(entry, news.gradients, scale)
        target = self._target(entry)
        if not target or not news.groups:
            return {}
        floored = {signal: self.floor + (1 - len(target) * self.floor) * w for signal, w in target.items()}
        pulls = {signal: self.rate * (math.log(w) - entry["log"][signal]) for signal, w in floored.items()}
        return {signal: clip(pull, -self.cap, self.cap) for signal, pull in pulls.items()}

    def _measure(self, entry: State, pulls: GradientStats, scale: Mapping[str, float]) -> None:
        """Update the running noise and bias of the signals, in place: both may fall below 0, and are right on average
        if the noises of the signals are independent."""
        known = [signal for signal in entry["log"] if signal in pulls.noise and signal in pulls.inner_products]
        if "policy" not in known:
            return
        size = {signal: scale.get(signal, 1.0) for signal in known}
        noise = {s: size[s] ** 2 * pulls.noise[s] for s in known}
        inner = {s: {t: size[s] * size[t] * pulls.inner_products[s][t] for t in known} for s in known}
        if not all(math.isfinite(x) for x in (*noise.values(), *(x for row in inner.values() for x in row.values()))):
            return
        for s in known:
            _run(entry["noise"], s, noise[s])
            for t in known:
                if "policy" in (s, t):
                    continue
                # The means are off by their noise: both biases by the policy's, and one with itself by its own.
                raw = inner[s][t] - inner[s]["policy"] - inner[t]["policy"] + inner["policy"]["policy"]
                _run(entry["bias"].setdefault(s, {}), t, raw - noise["policy"] - (noise[s] if s == t else 0.0))

    def _target(self, entry: State) -> dict[str, float]:
        """Weights to go to; none while nothing can be compared."""
        shares = _shares(entry["log"])
        others = {signal: share for signal, share in shares.items() if signal != "policy"}
        if "policy" not in shares or not others:
            return {}
        if entry["informative"] is not None and entry["informative"] < _BLIND:
            return {"policy": 0.0} | normalised(others)
        known = [signal for signal in shares if signal in entry["noise"]]
        if len(known) < 2:
            return {}
        best = minimise_on_simplex([[self._cost(entry, s, t) for t in known] for s in known])
        left = sum(shares[signal] for signal in known)  # what can't be compared keeps its weight
        return shares | {signal: left * w for signal, w in zip(known, best, strict=True)}

    def _cost(self, entry: State, s: str, t: str) -> float:
        """An entry of the matrix of squared errors, which is positive semidefinite."""
        value: float = max(entry["noise"][s], 0.0) if s == t else 0.0
        if "policy" in (s, t) or t not in entry["bias"].get(s, {}):
            return value
        most = math.sqrt(max(entry["bias"][s][s], 0.0) * max(entry["bias"][t][t], 0.0))
        return value + clip(entry["bias"][s][t], -most, most)


class GradientAlignmentController(_GradientController):
    """Weights follow how far each signal leads towards gold answers, which are looked at and not trained on.

    With h_s the cosine between a signal's gradient and that of the gold answers' negative log-likelihood, each tick
    moves the log of a weight by `clip(rate * h_s, -cap, cap) - decay * (log w_s - log prior_s)` (a one-step
    hypergradient, as in DoGE, Fan et al. 2024, and AMFT, arXiv 2508.06944). Where many answers are right the one gold
    answer tells little, and a skill without gold answers keeps its weights.
    """

    kind: Literal["probe"] = "probe"
    prompts: int = Field(16, gt=0)
    """Rows per skill whose gold answers are looked at: training questions, never held-out ones."""
    decay: float = Field(0.1, gt=0, le=1)
    """Share of the way back to the prior that a tick takes, so that no weight runs away."""

    @property
    def required_measurements(self) -> RequiredMeasurements:
        return RequiredMeasurements(gradients=True, gold_rows=self.prompts)

    def _moves(self, entry: State, news: SkillObservation, scale: Mapping[str, float]) -> dict[str, float]:
        found = {} if news.gradients is None else news.gradients.gold_cosine
        cosines = {signal: h for signal, h in found.items() if signal in entry["log"] and math.isfinite(h)}
        if not cosines:
            return {}
        prior = self._prior(list(entry["log"]))
        return {
            signal: clip(self.rate * cosines.get(signal, 0.0), -self.cap, self.cap) - self.decay * (log - prior[signal])
            for signal, log in entry["log"].items()
        }


def minimise_on_simplex(matrix: list[list[float]]) -> list[float]:
    """Return the weights, at least 0 and summing to 1, that minimise `w' A w` for a positive semidefinite A.

    Weight is moved between two entries at a time, each time to the exact minimum on that line.
    """
    places = range(len(matrix))
    weights = [1.0 / len(matrix) for _ in places]
    for _ in range(_SWEEPS):
        for i, j in itertools.combinations(places, 2):
            slope = sum((matrix[j][k] - matrix[i][k]) * weights[k] for k in places)
            bend = matrix[i][i] + matrix[j][j] - 2 * matrix[i][j]
            if slope:
                move = -slope / bend if bend > 0 else math.copysign(1.0, -slope)
                move = clip(move, -weights[j], weights[i])
                weights[i], weights[j] = weights[i] - move, weights[j] + move
    return weights


def _run(means: State, name: str, value: float) -> None:
    """Take a value into a running mean, in place."""
    means[name] = running(means.get(name), value, _MEMORY)


def _normalise(logs: State) -> None:
    """Make the weights that logs stand for sum to 1, in place."""
    top = max(logs.values())
    total = top + math.log(sum(math.exp(log - top) for log in logs.values()))
    for signal in logs:
        logs[signal] -= total


def _shares(logs: Mapping[str, float]) -> dict[str, float]:
    return normalised({signal: math.exp(log) for signal, log in logs.items()})
