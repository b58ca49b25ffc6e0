"""Curricula that follow measured success."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from rld.errors import CurriculumError
from rld.types import Task

_CONFIDENCE = 1.645
"""Standard normal quantile of a two-sided 90 % interval."""
_UP, _DOWN = 0.70, 0.15
"""Success rates above which a skill moves up a level and below which it moves down."""
_HOLD = 3
"""Least number of observations at a level before the skill changes level."""
_FLOOR = 0.2
"""Part of the prompts that is divided equally among the skills, independent of their success."""
_FAILING = 0.25
"""Lower bound of the success rate from which a skill's share is computed, so that a failing skill is still drawn:
teachers may raise its success."""


class Ladder:
    """Climb each skill's levels by measured success, and practise most the skills at the edge of what works.

    A skill moves up when the lower bound of its success at its level (Wilson, 90 %) is above 0.70, and down when the
    upper bound is below 0.15, at most one level at a time. Most prompts are at its level, and some are below, so that
    the student does not forget easier levels. Skills get the shares that the controller allocates. Where it allocates
    none, a fifth is divided equally and the rest in proportion to p(1 - p), p being the success rate of a skill.

    Args:
        levels: Number of levels per skill.
        window: Least number of attempts at a level from which its success rate is estimated.
        explore: Share of prompts whose level is drawn from all of the skill's, for a student that was trained on
            all levels and would forget the harder ones while it trains on easier ones.
    """

    def __init__(self, levels: Mapping[str, int], *, window: int = 32, explore: float = 0.0) -> None:
        if window < 1:
            raise CurriculumError(f"ladder:Ladder: window should be at least 1 attempt, not {window}")
        if not 0 <= explore <= 1:
            raise CurriculumError(f"ladder:Ladder: explore should be a share from 0 to 1, not {explore}")
        self.levels, self.window, self.explore = dict(levels), window, explore
        self.level = dict.fromkeys(levels, 0)
        self.num_updates = dict.fromkeys(levels, 0)
        """Updates with attempts at each skill's level, since it has that level."""
        self.recent: dict[str, list[tuple[int, int]]] = {skill: [] for skill in levels}
        """Latest (successes, attempts) at each skill's level, the oldest first."""
        self._allocation: Mapping[str, float] | None = None

    def next(self, rng: random.Random) -> Task:
        shares = self.shares()
        (skill,) = rng.choices(list(shares), list(shares.values()))
        if rng.random() < self.explore:
            return Task(skill, rng.randrange(self.levels[skill]))
        level = self.level[skill]
        depth = rng.choices((0, 1, 2), (0.7, 0.2, 0.1))[0]
        return Task(skill, rng.randrange(level - 1) if depth == 2 and level > 1 else max(level - depth, 0))

    def observe(self, task: Task, successes: int, attempts: int) -> None:
        skill = task.skill
        if task.level != self.level[skill] or attempts == 0:
            return
        self.num_updates[skill] += 1
        recent = [*self.recent[skill], (successes, attempts)]
        while sum(n for _, n in recent[1:]) >= self.window:
            recent = recent[1:]
        self.recent[skill] = recent
        self._move(skill)

    def _move(self, skill: str) -> None:
        successes, attempts = self._counts(skill)
        if attempts < self.window or self.num_updates[skill] < _HOLD:
            return
        lower, upper = _wilson(successes, attempts)
        step = (lower > _UP) - (upper < _DOWN)
        level = min(max(self.level[skill] + step, 0), self.levels[skill] - 1)
        if level != self.level[skill]:
            self.level[skill], self.num_updates[skill], self.recent[skill] = level, 0, []

    def _counts(self, skill: str) -> tuple[int, int]:
        recent = self.recent[skill]
        return sum(s for s, _ in recent), sum(n for _, n in recent)

    def allocate(self, shares: Mapping[str, float] | None) -> None:
        self._allocation = shares

    def shares(self) -> dict[str, float]:
        """Return the probability of drawing each skill."""
        if self._allocation is not None:
            return {skill: self._allocation[skill] for skill in self.levels}
        worth = {}
        for skill in self.levels:
            successes, attempts = self._counts(skill)
            success = max((successes + 1) / (attempts + 2), _FAILING)
            worth[skill] = success * (1 - success)
        total = sum(worth.values())
        return {skill: (1 - _FLOOR) * w / total + _FLOOR / len(worth) for skill, w in worth.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "level": dict(self.level),
            "held": dict(self.num_updates),
            "recent": {skill: [list(pair) for pair in recent] for skill, recent in self.recent.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level, self.num_updates = dict(state["level"]), dict(state["held"])
        self.recent = {skill: [(s, n) for s, n in recent] for skill, recent in state["recent"].items()}

    def metrics(self) -> dict[str, float]:
        levels = {f"level/{skill}": float(level) for skill, level in self.level.items()}
        return levels | {f"share/{skill}": share for skill, share in self.shares().items()}


def _wilson(successes: int, attempts: int) -> tuple[float, float]:
    """Return the bounds of Wilson's interval for a rate (Wilson 1927)."""
    rate, z2 = successes / attempts, _CONFIDENCE**2
    centre = rate + z2 / (2 * attempts)
    radius = _CONFIDENCE * math.sqrt(rate * (1 - rate) / attempts + z2 / (4 * attempts**2))
    scale = 1 + z2 / attempts
    return (centre - radius) / scale, (centre + radius) / scale
