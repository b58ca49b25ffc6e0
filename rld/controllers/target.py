"""Prompts go to the skills from which the student learns what some target skills need.

`TargetedController` is a controller around another one: it leaves signals and teachers to that one, and sets the shares
of the prompts by how far the gradient on each skill agrees with that on the target skills.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rld.controllers.base import State, normalised, running
from rld.controllers.observation import Observation, RequiredMeasurements, Weights
from rld.controllers.wrapped import WrappedController
from rld.types import Event, Signal

TRANSFER_ROWS = 16
"""Gold answers of each skill, and as many of each target skill, whose gradients are measured at a tick."""

EVEN_SHARE = 0.05
"""Share of the prompts that is split evenly between the skills, so that none is quite forgotten."""

STEP = 0.3
"""Share of the way to the skills' new shares that one tick takes."""

MEMORY = 0.8
"""Share of the running cosine that one tick keeps: about five ticks are averaged."""

HELPS_ABOVE = 0.05
"""Running cosine above which a skill that did not help counts as helping again; it ceases to below 0."""


@dataclass(frozen=True)
class TargetedController(WrappedController):
    """A controller whose shares of the prompts follow what transfers to the target skills.

    A skill's transfer h is the cosine of two gradients with respect to all weights that train, both of the negative
    log-likelihood of gold answers: of rows of the skill, and of rows of the target skills that the stage does not train
    on. To first order a step on the skill lowers the target's loss in proportion to it. The shares move towards those
    in proportion to `max(h, 0)`, h being a running mean, less 5 % that is split evenly.

    Source: Fan et al. 2024 (DoGE, arXiv:2310.15393), whose domain weights follow the same product of gradients; here
    with cosines, for a skill of large gradients is no better for that.

    Attributes:
        targets: The target skills, whether the stage trains them or not.
    """

    STATE_KEY = "target"

    targets: tuple[str, ...]

    @property
    def required_measurements(self) -> RequiredMeasurements:
        """What the other controller requires, and the transfer of each skill."""
        return self.controller.required_measurements._replace(target=self.targets)

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        entry: dict[str, Any] = {"share": 1 / len(skills), "transfer": None, "helps": True}
        return {**self.controller.start(skills, teachers, signals), "target": {skill: {**entry} for skill in skills}}

    def weights(self, state: State) -> Weights:
        shares = {skill: entry["share"] for skill, entry in state["target"].items()}
        return replace(self.controller.weights(self._inner(state)), allocation=shares)

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        inner, _, events = self.controller.step(self._inner(state), observation)
        target = {skill: {**entry} for skill, entry in state["target"].items()}
        for skill, entry in target.items():
            transfer = observation.skills[skill].transfer
            if transfer is None:
                continue
            entry["transfer"] = running(entry["transfer"], transfer, MEMORY)
            helps = entry["transfer"] >= (0.0 if entry["helps"] else HELPS_ABOVE)
            if helps != entry["helps"]:
                entry["helps"] = helps
                events = [*events, self._event(observation.step, skill, entry["transfer"], helps)]
        _move(target, self.targets)
        state = {**inner, "target": target}
        return state, self.weights(state), events

    def _event(self, step: int, skill: str, transfer: float, helps: bool) -> Event:
        kind = f"transfer {'on' if helps else 'off'}"
        measured = f"the gradient on {skill} has a cosine of {transfer:.3f} with that on the target"
        rule = f"above {HELPS_ABOVE:g}" if helps else "below 0: it gets what is split evenly alone"
        return Event(step, kind, skill, ", ".join(self.targets), measured, rule)


def _move(target: dict[str, dict[str, Any]], targets: tuple[str, ...]) -> None:
    """Move the shares, in place; without any skill that helps, towards the target skills, or evenly."""
    if all(entry["transfer"] is None for entry in target.values()):
        return
    odds = {skill: max(entry["transfer"] or 0.0, 0.0) for skill, entry in target.items()}
    if not any(odds.values()):
        odds = {skill: float(skill in targets or not set(targets) & set(target)) for skill in target}
    for skill, share in normalised(odds).items():
        aim = (1 - EVEN_SHARE) * share + EVEN_SHARE / len(target)
        target[skill]["share"] += STEP * (aim - target[skill]["share"])
