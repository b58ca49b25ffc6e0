"""Curricula that pace difficulty by an assumed growth of the student's competence."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from rld.errors import CurriculumError
from rld.types import Task


class SquareRoot:
    """Draw each skill's levels up to the student's competence, which grows with the square root of its attempts.

    After t attempts at a skill, its easiest share `c(t) = min(1, sqrt(t (1 - c0^2) / T + c0^2))` of levels is open, so
    that new levels come ever more slowly. Skills are drawn equally often, or in the shares that the controller
    allocates; open levels are drawn equally often.

    Source: Platanios et al. 2019 (arXiv:1903.09848), equation 7 with p = 2.

    Args:
        levels: Number of levels per skill.
        attempts: T, attempts at a skill after which all its levels are open.
        start: c0, the share of levels that is open at the start, in (0, 1]; at least one level is.
    """

    def __init__(self, levels: Mapping[str, int], *, attempts: int = 4000, start: float = 0.1) -> None:
        name = f"competence:{type(self).__name__}"
        if attempts < 1:
            raise CurriculumError(f"{name}: attempts should be at least 1, not {attempts}")
        if not 0 < start <= 1:
            raise CurriculumError(f"{name}: start should be a share in (0, 1], not {start}")
        self.levels, self.attempts, self.start = dict(levels), attempts, start
        self.num_attempts = dict.fromkeys(levels, 0)
        self._allocation: Mapping[str, float] | None = None

    def num_open(self, skill: str) -> int:
        """Return how many levels of a skill are open, from 1 to all."""
        progress = min(self.num_attempts[skill] / self.attempts, 1.0)
        competence = math.sqrt(progress * (1 - self.start**2) + self.start**2)
        return max(1, min(self.levels[skill], math.floor(competence * self.levels[skill] + 1e-9)))

    def shares(self) -> dict[str, float]:
        """Return the probability of drawing each skill."""
        if self._allocation is None:
            return dict.fromkeys(self.levels, 1 / len(self.levels))
        return {skill: self._allocation[skill] for skill in self.levels}

    def next(self, rng: random.Random) -> Task:
        shares = self.shares()
        (skill,) = rng.choices(list(shares), list(shares.values()))
        return Task(skill, rng.randrange(self.num_open(skill)))

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        self.num_attempts[task.skill] += attempts

    def allocate(self, shares: Mapping[str, float] | None) -> None:
        self._allocation = shares

    def state_dict(self) -> dict[str, Any]:
        return {"num_attempts": dict(self.num_attempts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_attempts = dict(state["num_attempts"])

    def metrics(self) -> dict[str, float]:
        highest = {f"level/{skill}": float(self.num_open(skill) - 1) for skill in self.levels}
        return highest | {f"share/{skill}": share for skill, share in self.shares().items()}
