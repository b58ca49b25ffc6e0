"""Which share of a skill's prompts is learnt from gold answers, and not from the student's own completions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rld.controllers.base import State
from rld.controllers.beta_posterior import UNIFORM, BetaPosterior
from rld.controllers.observation import Observation, Weights
from rld.controllers.wrapped import WrappedController
from rld.types import Event, Signal

MEMORY = 0.9
"""Share of earlier counts of successes that one tick keeps: about ten ticks are averaged."""

MOST_GOLD = 7 / 8
"""Largest share of gold prompts: from the others it is measured how often the student succeeds."""

MOST_PASSES = 4
"""Gold answers of a skill that are learnt at most, as passes over its rows: up to 4 passes teach about as much as new
rows do (Muennighoff et al. 2023, arXiv:2305.16264). After more a student knows the rows by heart, succeeds on them, and
shows no gap that a teacher could close."""


@dataclass(frozen=True)
class GoldShareController(WrappedController):
    """A controller that also sets the share of each skill's prompts whose gold answers are learnt.

    Of a verifier that accepts one answer only, the gradient of its log-likelihood and that of the success rate p have
    one direction. A sampled completion points along it with a squared ratio of signal to noise of p / (1 - p) times
    that of a gold answer: the policy's gradient is `p E[g | success]`, and its variance with a baseline about
    `p (1 - p) E[g²]`. Shares in proportion to these ratios are 1 - p for gold answers, and p for completions.

    Attributes:
        share: The share, fixed. None: `min(1 - p, 7/8)`, p being the mean of a Beta posterior of the student's success
            rate that forgets; and 0 once the gold answers that were learnt come to 4 passes over the skill's rows.
        num_rows: The number of rows with a gold answer of each skill that has an end of them.
        num_iterations: How often a rollout is learnt from.
    """

    STATE_KEY = "gold"

    share: float | None = None
    num_rows: Mapping[str, int] = field(default_factory=dict)
    num_iterations: int = 1

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        inner = self.controller.start(skills, teachers, signals)
        return {**inner, "gold": {skill: {"success": UNIFORM.model_dump(), "learnt": 0} for skill in skills}}

    def weights(self, state: State) -> Weights:
        shares = {skill: self._share(skill, entry) for skill, entry in state["gold"].items()}
        return replace(self.controller.weights(self._inner(state)), gold_share=shares)

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        inner, _, events = self.controller.step(self._inner(state), observation)
        gold = {}
        for skill, entry in state["gold"].items():
            measured = observation.skills[skill]
            success = BetaPosterior(**entry["success"])
            success = success.updated(measured.successes, measured.attempts, memory=MEMORY)
            learnt = entry["learnt"] + measured.gold_answers * self.num_iterations
            gold[skill] = {"success": success.model_dump(), "learnt": learnt}
            if self.share is None and self._is_learnt(skill, gold[skill]) > self._is_learnt(skill, entry):
                events = [*events, self._event(observation.step, skill, learnt)]
        state = {**inner, "gold": gold}
        return state, self.weights(state), events

    def _share(self, skill: str, entry: Mapping[str, Any]) -> float:
        if self.share is not None:
            return self.share
        return 0.0 if self._is_learnt(skill, entry) else min(1 - BetaPosterior(**entry["success"]).mean, MOST_GOLD)

    def _is_learnt(self, skill: str, entry: Mapping[str, Any]) -> bool:
        return bool(entry["learnt"] >= MOST_PASSES * self.num_rows.get(skill, math.inf))

    def _event(self, step: int, skill: str, learnt: int) -> Event:
        measured = f"{learnt} gold answers of its {self.num_rows[skill]} rows were learnt"
        return Event(step, "gold answers learnt", skill, "gold", measured, f"{MOST_PASSES} passes at most")
