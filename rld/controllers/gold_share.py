"""Which share of a skill's prompts is learnt from gold answers, and not from the student's own completions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rld.controllers.base import State
from rld.controllers.beta_posterior import UNIFORM, BetaPosterior
from rld.controllers.observation import Observation, Weights
from rld.controllers.wrapped import WrappedController
from rld.types import Event, Signal

MEMORY = 0.9
"""Share of earlier counts of successes that one tick keeps: about ten ticks are averaged."""

MOST_GOLD = 7 / 8
"""Largest share of gold prompts: from the others it is measured how often the student succeeds."""


@dataclass(frozen=True)
class GoldShareController(WrappedController):
    """A controller that also sets the share of each skill's prompts whose gold answers are learnt.

    Of a verifier that accepts one answer only, the gradient of its log-likelihood and that of the success rate p have
    one direction. A sampled completion points along it with a squared ratio of signal to noise of p / (1 - p) times
    that of a gold answer: the policy's gradient is `p E[g | success]`, and its variance with a baseline about
    `p (1 - p) E[g²]`. Shares in proportion to these ratios are 1 - p for gold answers, and p for completions.

    Attributes:
        share: The share, fixed. None: `min(1 - p, 7/8)`, p being the mean of a Beta posterior of the student's success
            rate that forgets.
    """

    STATE_KEY = "gold"

    share: float | None = None

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        success = {skill: UNIFORM.model_dump() for skill in skills}
        return {**self.controller.start(skills, teachers, signals), "gold": success}

    def weights(self, state: State) -> Weights:
        shares = {skill: self._share(BetaPosterior(**success)) for skill, success in state["gold"].items()}
        return replace(self.controller.weights(self._inner(state)), gold_share=shares)

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        inner, _, events = self.controller.step(self._inner(state), observation)
        gold = {}
        for skill, success in state["gold"].items():
            measured = observation.skills[skill]
            after = BetaPosterior(**success).updated(measured.successes, measured.attempts, memory=MEMORY)
            gold[skill] = after.model_dump()
        state = {**inner, "gold": gold}
        return state, self.weights(state), events

    def _share(self, success: BetaPosterior) -> float:
        return min(1 - success.mean, MOST_GOLD) if self.share is None else self.share
