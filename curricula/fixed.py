"""Curricula that do not change."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from rld.errors import CurriculumError
from rld.types import Task


class Uniform:
    """Draw skills in fixed shares, or in the controller's, and each skill's levels equally often.

    Args:
        levels: Number of levels per skill.
        weights: Share of each skill relative to the others; 0 leaves a skill out. None: the shares that the
            controller allocates, or equal shares where it allocates none.
    """

    def __init__(self, levels: Mapping[str, int], *, weights: Mapping[str, float] | None = None) -> None:
        self.levels = dict(levels)
        shares = dict.fromkeys(levels, 1.0) if weights is None else weights
        if set(shares) != set(levels):
            raise CurriculumError(f"fixed:Uniform: weights should name the skills {list(levels)}, not {list(shares)}")
        total = sum(shares.values())
        if min(shares.values()) < 0 or not 0 < total < math.inf:
            raise CurriculumError(f"fixed:Uniform: weights should be at least 0, and one more, not {dict(shares)}")
        self.shares = {skill: shares[skill] / total for skill in levels}
        self._own, self._follows = self.shares, weights is None

    def next(self, rng: random.Random) -> Task:
        (skill,) = rng.choices(list(self.shares), list(self.shares.values()))
        return Task(skill, rng.randrange(self.levels[skill]))

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        pass

    def allocate(self, shares: Mapping[str, float] | None) -> None:
        if self._follows:
            self.shares = self._own if shares is None else {skill: shares[skill] for skill in self._own}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        levels = {f"level/{skill}": (number - 1) / 2 for skill, number in self.levels.items()}
        return levels | {f"share/{skill}": share for skill, share in self.shares.items()}
