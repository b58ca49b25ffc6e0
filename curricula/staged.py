"""Curricula that follow a schedule."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from rld.errors import CurriculumError
from rld.types import Task


class Staged:
    """Open each skill's levels one after the other as its attempts add up; draw skills and open levels equally often.

    Args:
        levels: Number of levels per skill.
        attempts: Attempts at a skill after which all its levels are open; they open at equal intervals.
    """

    def __init__(self, levels: Mapping[str, int], *, attempts: int = 4000) -> None:
        if attempts < 1:
            raise CurriculumError(f"staged:Staged: attempts should be at least 1, not {attempts}")
        self.levels, self.attempts = dict(levels), attempts
        self.num_attempts = dict.fromkeys(levels, 0)

    def num_open(self, skill: str) -> int:
        """Return how many levels of a skill are open, from 1 to all."""
        number = self.levels[skill]
        return min(number, 1 + (number - 1) * self.num_attempts[skill] // self.attempts)

    def next(self, rng: random.Random) -> Task:
        skill = rng.choice(list(self.levels))
        return Task(skill, rng.randrange(self.num_open(skill)))

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        self.num_attempts[task.skill] += attempts

    def state_dict(self) -> dict[str, Any]:
        return {"seen": dict(self.num_attempts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_attempts = dict(state["seen"])

    def metrics(self) -> dict[str, float]:
        highest = {f"level/{skill}": float(self.num_open(skill) - 1) for skill in self.levels}
        return highest | {f"share/{skill}": 1 / len(self.levels) for skill in self.levels}
