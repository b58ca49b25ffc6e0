"""How much each signal and each teacher counts now, per skill.

A controller is a frozen model of its options. `start` gives its state (plain JSON), `weights` reads the weights off a
state, and `step` turns what was measured since the last tick into the next state, its weights, and the events worth
telling. Nothing here sees a tensor, so every rule is tested without training.

To add one, write a class and put its name in `AnyController`, the last line.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rld.types import SIGNALS, Event, Observation, Signal, SkillSeen, TeacherSeen, Weights

State = dict[str, Any]


class _Controller(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    every: int = Field(5, gt=0)
    """Optimiser steps between ticks; between two ticks the weights stand still."""
    heartbeat: int = Field(20, gt=0)
    """Ticks between looks at a teacher whose weight is 0, so that it can come back."""


class Fixed(_Controller):
    """The same weights from start to end: the baseline that an adaptive controller must beat."""

    kind: Literal["fixed"] = "fixed"
    policy: float = Field(1.0, ge=0, le=1)
    response: float = Field(1.0, ge=0, le=1)
    feature: float = Field(1.0, ge=0, le=1)
    teachers: dict[str, float] = {}
    """Relative weight per teacher; a teacher that is not named counts 1 where any is unnamed. They are normalised."""

    @model_validator(mode="after")
    def _teachers_are_shares(self) -> Fixed:
        if any(weight < 0 for weight in self.teachers.values()):
            raise ValueError("the weights of teachers cannot be negative")
        return self

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        return {"version": 1, "skills": skills, "teachers": teachers, "signals": signals}

    def weights(self, state: State) -> Weights:
        raw = {teacher: self.teachers.get(teacher, 1.0) for teacher in state["teachers"]}
        total = sum(raw.values())
        shares = {teacher: weight / total if total else 0.0 for teacher, weight in raw.items()}
        given: dict[Signal, float] = {"policy": self.policy, "response": self.response, "feature": self.feature}
        signals = {signal: given[signal] for signal in state["signals"]}
        return Weights(dict.fromkeys(state["skills"], signals), dict.fromkeys(state["skills"], shares))

    def step(self, state: State, seen: Observation) -> tuple[State, Weights, list[Event]]:
        return state, self.weights(state), []


class Gap(_Controller):
    """Weights follow the gap that each signal can still close, per skill.

    - `policy` is worth the measured share of groups whose completions got different rewards: where all succeed or
      all fail, reinforcement has no gradient.
    - A teacher that teaches only where it is right is worth what the student still fails on those prompts, up to
      `headroom`. One that teaches everywhere is worth its lead: the chance that it is better than the student times
      how far, up to `headroom`. Both are times the square of its competence relative to the best teacher's.
      Competences are Beta posteriors of verified successes, with forgetting. Teachers that were never measured are all
      worth how far the student still is from the furthest of them, up to `kappa` nats.
    - `response` is worth its best teacher; `feature` the same, fading as the outputs align.

    Each tick takes a capped mirror step towards weights in proportion to `prior * worth`, and switches a signal or
    teacher off after `patience` ticks below `off`, on again after two ticks above `on`. `policy` is never off.
    """

    kind: Literal["gap"] = "gap"
    forget: float = Field(0.9, gt=0, lt=1)
    """Per tick, the share of the student's counts that is kept."""
    headroom: float = Field(0.2, gt=0)
    """A lead, or a share of failures, of this much is worth 1."""
    margin: float = Field(0.02, ge=0)
    """A teacher must lead by more than this."""
    cover: float = Field(0.1, ge=0, lt=1)
    """A teacher that is right on less than this share of a skill's prompts is worth nothing there."""
    kappa: float = Field(0.05, gt=0)
    """A divergence of this many nats per token is worth 1."""
    prior: dict[Signal, Annotated[float, Field(gt=0)]] = {"policy": 1.0, "response": 1.0, "feature": 0.25}
    """How much a signal of worth 1 counts, relative to the others."""
    rate: float = Field(0.5, gt=0, le=1)
    """Share of the way to the target, in log space, that a tick takes."""
    cap: float = Field(0.7, gt=0)
    """The most that a tick changes the log of a weight by, before normalisation."""
    off: float = Field(0.05, ge=0)
    """Below this worth a signal or teacher is on its way out."""
    on: float = 0.15
    """Above this worth it is on its way back; higher than `off`, so that it does not flap."""
    patience: int = Field(3, gt=0)
    even_out: bool = True
    """Scale `response` and `feature` so that their gradients are as large as the policy's, within a factor of 10."""

    @model_validator(mode="after")
    def _on_is_above_off(self) -> Gap:
        if self.on <= self.off:
            raise ValueError(f"on ({self.on}) should be above off ({self.off})")
        return self

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        def even(names: Iterable[str], odds: Mapping[str, float]) -> State:
            total = sum(odds[name] for name in names) or 1.0
            return {name: {"log": math.log(odds[name] / total), "on": True, "ticks": 0} for name in names}

        return {
            "version": 2,
            "tick": 0,
            "gradients": {},
            "skills": {
                skill: {
                    "student": [1.0, 1.0],
                    "informative": None,
                    "gate": {},
                    "signals": even(signals, {signal: self.prior.get(signal, 1.0) for signal in signals}),
                    "teachers": even(teachers, dict.fromkeys(teachers, 1.0)),
                }
                for skill in skills
            },
        }

    def weights(self, state: State) -> Weights:
        return Weights(
            signals={skill: _shares(entry["signals"]) for skill, entry in state["skills"].items()},
            teachers={skill: _shares(entry["teachers"]) for skill, entry in state["skills"].items()},
            scale=self._scale(state["gradients"]),
        )

    def step(self, state: State, seen: Observation) -> tuple[State, Weights, list[Event]]:
        state = copy.deepcopy(state)
        state["tick"] += 1
        for signal, norm in seen.gradients.items():
            if norm is not None and math.isfinite(norm) and norm > 0:
                before = state["gradients"].get(signal, norm)
                state["gradients"][signal] = 0.8 * before + 0.2 * norm
        events: list[Event] = []
        for skill in sorted(state["skills"]):
            entry, news = state["skills"][skill], seen.skills.get(skill, SkillSeen())
            failures = news.attempts - news.successes
            a, b = entry["student"]
            entry["student"] = [1 + self.forget * (a - 1) + news.successes, 1 + self.forget * (b - 1) + failures]
            if news.groups:
                share = news.informative / news.groups
                before = entry["informative"]
                entry["informative"] = share if before is None else 0.5 * before + 0.5 * share
            teachers = {name: news.teachers.get(name) for name in entry["teachers"]}
            self._watch_the_gate(entry["gate"], teachers)
            leads = self._leads(entry, teachers)
            apart = [seen_t.divergence for seen_t in news.teachers.values() if seen_t.divergence is not None]
            fade = _clip(max(apart) / self.kappa, 0, 1) if apart else 1.0
            best = max(leads.values(), default=0.0)
            worth = {"policy": entry["informative"] or 0.0, "response": best, "feature": best * fade}
            p = entry["student"][0] / sum(entry["student"])
            measured = f"student {p:.2f}, informative {entry['informative'] or 0:.2f}, best lead {best:.2f}"
            for table, values, prior, never in (
                ("teachers", leads, {}, ""),
                ("signals", worth, self.prior, "policy"),
            ):
                for name, turned in self._mirror(entry[table], values, prior, never):
                    kind = f"{table[:-1]} {'on' if turned else 'off'}"
                    events.append(Event(seen.step, kind, skill, name, f"{measured}, its worth {values[name]:.2f}"))
        return state, self.weights(state), events

    def _watch_the_gate(self, gate: State, teachers: Mapping[str, TeacherSeen | None]) -> None:
        """Count in how often each teacher was right when asked, and how the student does on those prompts."""
        for name, seen in teachers.items():
            if seen is None or not seen.asked:
                continue
            start = {"right": [1.0 + seen.verified, 1.0 + seen.probed - seen.verified], "student": [1.0, 1.0]}
            entry = gate.setdefault(name, start)
            entry["right"] = self._updated(entry["right"], seen.right, seen.asked)
            entry["student"] = self._updated(entry["student"], seen.successes, seen.attempts)

    def _updated(self, beta: list[float], successes: int, attempts: int) -> list[float]:
        """A Beta posterior that forgets, after more attempts; without any it stays."""
        if not attempts:
            return beta
        a, b = beta
        return [1 + self.forget * (a - 1) + successes, 1 + self.forget * (b - 1) + attempts - successes]

    def _leads(self, entry: State, teachers: Mapping[str, TeacherSeen | None]) -> dict[str, float]:
        """Worth in [0, 1] of each teacher on a skill."""
        p, p_var = _beta(*entry["student"])
        teaching = {name: seen for name, seen in teachers.items() if seen is not None and seen.teaches}
        posterior = {}
        for name, seen in teaching.items():
            if name in entry["gate"]:
                posterior[name] = _beta(*entry["gate"][name]["right"])
            elif seen.probed:
                posterior[name] = _beta(1 + seen.verified, 1 + seen.probed - seen.verified)
        best = max((c for c, _ in posterior.values()), default=1.0)
        # Of teachers that nobody has verified none can be preferred: least of all the one that disagrees most.
        known = [t.divergence for name, t in teaching.items() if name not in posterior and t.divergence is not None]
        trusted = _clip(max(known) / self.kappa, 0, 1) if known else 1.0
        worth = dict.fromkeys(teachers, 0.0)
        for name in teaching:
            if name not in posterior:
                worth[name] = trusted
                continue
            c, c_var = posterior[name]
            if name in entry["gate"]:
                failing = 1 - _beta(*entry["gate"][name]["student"])[0]
                value = _clip(failing / self.headroom, 0, 1) if c >= self.cover else 0.0
            else:
                chance = 0.5 * math.erfc(-(c - p - self.margin) / math.sqrt(2 * (p_var + c_var)))
                value = chance * _clip((c - p) / self.headroom, 0, 1)
            # Squared, so that a weak teacher does not dilute a strong one while the student is weaker than both.
            worth[name] = value * (c / best) ** 2
        return worth

    def _mirror(
        self, table: State, worth: Mapping[str, float], prior: Mapping[Any, float], never_off: str
    ) -> list[tuple[str, bool]]:
        """One capped mirror step on `table` in place; returns what was turned on or off."""
        turned = []
        for name, entry in table.items():
            value = worth[name] if math.isfinite(worth[name]) else 0.0
            entry["ticks"] = entry["ticks"] + 1 if (value < self.off if entry["on"] else value > self.on) else 0
            if entry["on"] and entry["ticks"] >= self.patience and name != never_off:
                entry.update(on=False, ticks=0)
                turned.append((name, False))
            elif not entry["on"] and entry["ticks"] >= 2:
                entry.update(on=True, ticks=0, log=max(entry["log"], math.log(0.05)))
                turned.append((name, True))
        active = [name for name in table if table[name]["on"]]
        raw = {name: prior.get(name, 1.0) * _clip(worth[name], 0, 1) + 0.01 for name in active}
        total = sum(raw.values())
        for name in active:
            pull = self.rate * (math.log(raw[name] / total) - table[name]["log"])
            table[name]["log"] += _clip(pull, -self.cap, self.cap)
        if active:
            z = math.log(sum(math.exp(table[name]["log"]) for name in active))
            for name in active:
                table[name]["log"] -= z
        return turned

    def _scale(self, gradients: Mapping[str, float]) -> dict[str, float]:
        policy = gradients.get("policy")
        if not self.even_out or not policy:
            return {}
        return {
            signal: _clip(policy / gradients[signal], 0.1, 10.0)
            for signal in SIGNALS
            if signal != "policy" and gradients.get(signal)
        }


def _shares(table: State) -> dict[str, float]:
    total = sum(math.exp(entry["log"]) for entry in table.values() if entry["on"])
    return {name: math.exp(entry["log"]) / total if entry["on"] else 0.0 for name, entry in table.items()}


def _beta(a: float, b: float) -> tuple[float, float]:
    """Mean and variance of Beta(a, b)."""
    mean = a / (a + b)
    return mean, mean * (1 - mean) / (a + b + 1)


def _clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high) if math.isfinite(x) else low


AnyController = Annotated[Fixed | Gap, Field(discriminator="kind")]
