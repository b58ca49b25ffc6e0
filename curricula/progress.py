"""Curricula that follow how fast success changes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from rld.errors import CurriculumError
from rld.types import Task


class LearningProgress:
    """Draw most the tasks (a skill at a level) whose success changes fastest, in either direction.

    The progress of a task is the distance between a fast and a slow running mean of its success rate, so that what is
    mastered, what is out of reach and what stands still are drawn little, and what is being forgotten is drawn again.
    A share `explore` of the prompts is divided equally among all tasks. Until success has changed anywhere, all are.

    Sources: Matiisen et al. 2017 (arXiv:1707.00183), the absolute value of progress; Graves et al. 2017
    (arXiv:1704.03003), progress as the reward of a bandit.

    Args:
        levels: Number of levels per skill.
        explore: Share of prompts that is divided equally, in (0, 1].
        window: Attempts at a task over which the fast mean forgets; the slow one takes four times as many.
    """

    def __init__(self, levels: Mapping[str, int], *, explore: float = 0.3, window: int = 64) -> None:
        if not 0 < explore <= 1:
            raise CurriculumError(f"progress:LearningProgress: explore should be a share in (0, 1], not {explore}")
        if window < 1:
            raise CurriculumError(f"progress:LearningProgress: window should be at least 1 attempt, not {window}")
        self.levels, self.explore, self.window = dict(levels), explore, window
        self._means: dict[str, list[tuple[float, float]]] = {skill: [(0.0, 0.0)] * n for skill, n in levels.items()}
        """The fast and the slow mean of each skill's levels. They start at 0: the first successes are progress."""
        self._allocation: Mapping[str, float] | None = None

    def next(self, rng: random.Random) -> Task:
        shares = self.shares()
        (skill,) = rng.choices(list(shares), list(shares.values()))
        (level,) = rng.choices(range(self.levels[skill]), self._weights()[skill])
        return Task(skill, level)

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        if attempts == 0:
            return
        rate, (fast, slow) = successes / attempts, self._means[task.skill][task.level]
        step = 1 - (1 - 1 / self.window) ** attempts
        slow_step = 1 - (1 - 1 / (4 * self.window)) ** attempts
        self._means[task.skill][task.level] = fast + step * (rate - fast), slow + slow_step * (rate - slow)

    def _weights(self) -> dict[str, list[float]]:
        """Return the probability of drawing each level of each skill; they add up to 1 over all skills."""
        progress = {skill: [abs(fast - slow) for fast, slow in means] for skill, means in self._means.items()}
        total, num_tasks = sum(map(sum, progress.values())), sum(self.levels.values())
        explore = self.explore if total > 0 else 1.0
        return {
            skill: [explore / num_tasks + (1 - explore) * (value / total if total > 0 else 0.0) for value in values]
            for skill, values in progress.items()
        }

    def shares(self) -> dict[str, float]:
        """Return the probability of drawing each skill: the controller's, else the sum over its levels."""
        if self._allocation is not None:
            return {skill: self._allocation[skill] for skill in self.levels}
        return {skill: sum(weights) for skill, weights in self._weights().items()}

    def allocate(self, shares: Mapping[str, float] | None) -> None:
        self._allocation = shares

    def state_dict(self) -> dict[str, Any]:
        return {"means": {skill: [list(pair) for pair in means] for skill, means in self._means.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = {skill: [(fast, slow) for fast, slow in means] for skill, means in state["means"].items()}

    def metrics(self) -> dict[str, float]:
        most_drawn = {skill: weights.index(max(weights)) for skill, weights in self._weights().items()}
        levels = {f"level/{skill}": float(level) for skill, level in most_drawn.items()}
        return levels | {f"share/{skill}": share for skill, share in self.shares().items()}
