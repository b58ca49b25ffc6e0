"""How strongly a student is held to an earlier self, so that it does not forget: a rule without tensors.

The student answers a few probe prompts of each protected skill now and then. Where fewer answers are right than
allowed, the weight λ of the divergence from the student as it was at the start of the stage rises, by a proportional
and an integral term (a PI-Lagrangian; Stooke et al. 2020, Sohrabi et al. 2024); where they are right it leaks away. It
goes beside any controller: λ comes on top of the weights that sum to 1.

Beside it, on demand, a budget for that divergence itself, whatever the answers are: one more weight, that follows the
ratio of the two (the adaptive KL coefficient of Ziegler et al. 2019, equation 4, with a gain of 1 a probe).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

from pydantic import Field, field_validator

from rld.controllers.base import State, clip
from rld.types import Event
from rld.utils.options import FrozenOptions

VERSION = 2

_P, _I = 3.0, 1.0
"""Gains of a change in the violation, and of the violation itself."""

_CLIP = 0.2
"""The most that one probe's violation counts."""

_HIGHEST, _LOWEST = 10.0, 0.01
"""λ is at most the first, and 0 below the second."""

_START = 2.0
"""λ before the first probe. What a stage does not practise is lost within a few updates, before a probe can tell."""

_LEAK = 0.05
"""Share of λ that is lost at a probe that shows no violation."""

_EARLY, _OFTEN, _SELDOM = 20, 2, 5
"""Up to so many ticks the skills are probed every second one, then every fifth: most is forgotten early."""

_RATIO, _WITHIN = 0.2, 0.8
"""The most that a budget's weight changes by at a probe; share of the budget below which it counts as kept again."""

_FULL, _PATIENCE = 0.99, 5
"""So many probes in a row with λ at this share of the highest show that it can't hold the skill."""

Counts = tuple[int, int]
"""Right answers, and prompts."""


class RetentionRule(FrozenOptions):
    """Hold a student to what it could at the start of a stage, on skills that it must not forget.

    Prompts of the protected skills are replayed: the loss gets `λ KL(π₀ || π)`, the mean over the tokens of completions
    that the student sampled at the start. λ begins at 2, as insurance, and leaks away where nothing is being lost.
    """

    skills: list[str] | None = None
    """Skills to protect, trained ones or others. None: all that are not trained."""
    drop: float = Field(0.03, ge=0, lt=1)
    """How far the share of right answers may fall below that at the start."""
    probes: int = Field(32, gt=0)
    """Prompts per skill that are answered greedily to measure it."""
    prompts: int = Field(256, gt=0)
    """Prompts per skill that are replayed in turn; a student learns few by heart and forgets the skill all the same."""
    batch: int = Field(32, gt=0)
    """Of these, how many an update replays while λ is above 0."""
    budget: float | None = Field(None, gt=0)
    """Nats per token that the student may be from what it was, in the mean over the replayed completions. None: as many
    as leave the answers right."""

    @field_validator("skills")
    @classmethod
    def _once_each(cls, skills: list[str] | None) -> list[str] | None:
        twice = [skill for skill in skills or () if (skills or []).count(skill) > 1]
        if twice:
            raise ValueError(f"names {twice[0]!r} twice")
        return skills

    def start(self, baseline: Mapping[str, Counts]) -> State:
        """Return the state at the start of a stage, from the probes of the skills that are protected."""
        entry = {"weight": _START, "excess": 0.0, "full": 0, "violated": False}
        skills = {skill: entry | {"baseline": right / asked} for skill, (right, asked) in baseline.items()}
        return {"version": VERSION, "tick": 0, "skills": skills, "budget": {"weight": _LOWEST, "over": False}}

    def weights(self, state: State) -> dict[str, float]:
        """λ per protected skill, in [0, 10]; with a budget never 0, for what is not replayed is not measured."""
        least = 0.0 if self.budget is None else state["budget"]["weight"]
        return {skill: max(entry["weight"], least) for skill, entry in state["skills"].items()}

    def tick(self, state: State) -> tuple[State, bool]:
        """Return the state one tick later, and whether the skills are to be probed now."""
        tick = state["tick"] + 1
        return {**state, "tick": tick}, tick % (_OFTEN if tick <= _EARLY else _SELDOM) == 0

    def step(
        self, state: State, probed: Mapping[str, Counts], step: int, drift: float | None = None
    ) -> tuple[State, list[Event]]:
        """Move every λ by what the probes show, at an optimiser step.

        `drift` is the mean divergence over the tokens replayed since the last probe, in nats; None: nothing was.
        """
        state, events = copy.deepcopy(state), []
        for skill, (right, asked) in probed.items():
            entry = state["skills"][skill]
            turned = self._move(entry, right, asked)
            measured = f"{right} of {asked} right, at the start {entry['baseline']:.2f}; weight {entry['weight']:.2f}"
            events += [Event(step, f"retention {how}", skill, "reference", measured, rule) for how, rule in turned]
        if self.budget is not None and drift is not None:
            events += self._spend(state["budget"], self.budget, drift, step)
        return state, events

    def _spend(self, entry: State, budget: float, drift: float, step: int) -> list[Event]:
        """Move a budget's weight in place; returns the event of its being exceeded, or kept again."""
        entry["weight"] = clip(entry["weight"] * (1 + clip(drift / budget - 1, -_RATIO, _RATIO)), _LOWEST, _HIGHEST)
        over = drift > (_WITHIN if entry["over"] else 1.0) * budget
        if over == entry["over"]:
            return []
        entry["over"] = over
        measured, rule = f"divergence {drift:.3g} nats a token; weight {entry['weight']:.2f}", f"budget {budget:g}"
        return [Event(step, f"budget {'exceeded' if over else 'kept'}", "all skills", "reference", measured, rule)]

    def _move(self, entry: State, right: int, asked: int) -> list[tuple[str, str]]:
        """Move one λ in place; returns how the constraint turned, and by which rule."""
        gap = entry["baseline"] - self.drop - right / asked
        smoothed = (right + 1) / (asked + 2)  # all right says little of few prompts
        error = math.sqrt(smoothed * (1 - smoothed) / (asked + 2))
        violation = clip(gap, -_CLIP, _CLIP) if abs(gap) > error else 0.0
        excess = max(violation, 0.0)  # what is better than it must be raises nothing when it gets a little worse
        before, kept = entry["weight"], 1 - _LEAK if gap <= 0 else 1.0
        # The bounds are inside the recursion, so that nothing winds up behind them.
        after = clip(kept * before + _I * violation + _P * (excess - entry["excess"]), 0, _HIGHEST)
        after = after if after >= _LOWEST else 0.0
        entry.update(weight=after, excess=excess, full=entry["full"] + 1 if after >= _FULL * _HIGHEST else 0)
        turned = []
        if violation > 0 and not entry["violated"]:
            entry["violated"] = True
            turned.append(("on", f"more than {self.drop:g} and a standard error below the start"))
        if before and not after:
            entry["violated"] = False
            turned.append(("off", f"weight below {_LOWEST:g}"))
        if entry["full"] == _PATIENCE:
            turned.append(("infeasible", f"weight at its limit of {_HIGHEST:g} for {_PATIENCE} probes"))
        return turned
