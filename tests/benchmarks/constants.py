"""How far does each constant of the default controller move its weights, on the measurements of one run?

    python -m tests.benchmarks.constants scenarios/s4_teacher_regresses stages.distill.signals.gold=null seed=40

Trains the recipe, whose controller is `gap`, and shows the measurements of its ticks again to controllers with one
other constant each. Where no weight moves, a run with that constant is the same run. Where one moves, later
measurements would differ too, and only a run shows what comes of it.
"""

from __future__ import annotations

import sys
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from rld.cli import main
from rld.controllers.gap import GapController
from rld.controllers.observation import Observation, Weights

OTHERS = {
    "memory": (0.8, 0.95),
    "lead_scale": (0.1, 0.4),
    "divergence_scale": (0.025, 0.1),
    "step_size": (0.25, 1.0),
    "max_log_step": (0.35, 1.4),
    "off_below": (0.025, 0.1),
    "patience_ticks": (2, 6),
}
"""Of each constant, the values that its default is compared with."""


def record(arguments: list[str]) -> tuple[GapController, tuple[Any, ...], list[Observation]]:
    """Train, and return the controller, what it started with, and its observations."""
    started: list[tuple[GapController, tuple[Any, ...]]] = []
    observations: list[Observation] = []
    start, step = GapController.start, GapController.step

    def recorded_start(self: GapController, *names: Any) -> Any:
        started.append((self, names))
        return start(self, *names)

    def recorded_step(self: GapController, state: Any, observation: Observation) -> Any:
        observations.append(observation)
        return step(self, state, observation)

    with patch.multiple(GapController, start=recorded_start, step=recorded_step), TemporaryDirectory() as folder:
        code = main(["train", *arguments, "--output", f"{folder}/run"])
    if code or not observations:
        raise SystemExit(code or "the recipe has no stage whose controller is gap")
    controller, names = started[-1]
    return controller, names, observations


def numbers(weights: Weights) -> list[float]:
    """The weights of signals and teachers, and the skills' shares of the prompts, in one order."""
    per_skill = [*weights.signals.values(), *weights.teachers.values()]
    return [*(w for of_skill in per_skill for w in of_skill.values()), *(weights.allocation or {}).values()]


def replay(controller: GapController, names: tuple[Any, ...], observations: list[Observation]) -> list[list[float]]:
    """The controller's weights after each tick."""
    state, after = controller.start(*names), []
    for observation in observations:
        state, weights, _ = controller.step(state, observation)
        after.append(numbers(weights))
    return after


def compare(arguments: list[str]) -> None:
    controller, names, observations = record(arguments)
    default = replay(controller, names, observations)
    print("| constant | mean change of a weight | largest | from tick |\n|---|---|---|---|")
    for constant, values in OTHERS.items():
        for value in values:
            other = replay(controller.model_copy(update={constant: value}), names, observations)
            changes = [
                [abs(a - b) for a, b in zip(now, then, strict=True)] for now, then in zip(default, other, strict=True)
            ]
            first = next((tick for tick, of_tick in enumerate(changes, 1) if any(of_tick)), "")
            mean, largest = fmean(fmean(of_tick) for of_tick in changes), max(map(max, changes))
            print(f"| `{constant}` {value:g} | {mean:.4f} | {largest:.3f} | {first} |")


if __name__ == "__main__":
    compare(sys.argv[1:])
