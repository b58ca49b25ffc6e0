"""Beta posteriors of a success rate, with forgetting, and a detector of sudden changes of that rate."""

from __future__ import annotations

import math

from pydantic import BaseModel

_MAX_DEVIATION = 3.0
"""Standard deviations from the expected rate above which the rate has changed."""

_MIN_ATTEMPTS = 8
"""Attempts for one comparison at least; fewer are collected over several ticks."""


class BetaPosterior(BaseModel, frozen=True, extra="forbid"):
    """Beta(alpha, beta) as the posterior of a success rate."""

    alpha: float
    beta: float

    @classmethod
    def of_counts(cls, successes: int, attempts: int) -> BetaPosterior:
        """Return the posterior after these attempts, from the uniform prior."""
        return cls(alpha=1.0 + successes, beta=1.0 + attempts - successes)

    @property
    def mean(self) -> float:
        return self.alpha / (self.alpha + self.beta)

    @property
    def variance(self) -> float:
        return self.mean * (1 - self.mean) / (self.alpha + self.beta + 1)

    def updated(
        self, successes: float, attempts: int, *, memory: float, prior: BetaPosterior | None = None
    ) -> BetaPosterior:
        """Return the posterior after more attempts; without any it stays.

        Args:
            successes, attempts: The new ones.
            memory: Share of the earlier counts that is kept, those of the prior excepted.
            prior: From which the counts started; None: the uniform one.
        """
        if not attempts:
            return self
        prior = prior or UNIFORM
        return BetaPosterior(
            alpha=prior.alpha + memory * (self.alpha - prior.alpha) + successes,
            beta=prior.beta + memory * (self.beta - prior.beta) + (attempts - successes),
        )

    def scaled(self, factor: float) -> BetaPosterior:
        """Return the posterior with both parameters multiplied by `factor`: the same mean, another variance."""
        return BetaPosterior(alpha=factor * self.alpha, beta=factor * self.beta)


UNIFORM = BetaPosterior(alpha=1.0, beta=1.0)


class ChangeDetector(BaseModel, frozen=True, extra="forbid"):
    """Compares the success rate of new attempts with an earlier posterior.

    Attributes:
        baseline: The posterior after the last comparison.
        successes, attempts: Collected since then.
    """

    baseline: BetaPosterior
    successes: int = 0
    attempts: int = 0

    def after(self, successes: int, attempts: int) -> tuple[ChangeDetector, bool]:
        """Return the detector after more attempts, and whether the rate has changed.

        It has, if the rate over eight attempts or more is over three standard deviations from the baseline's mean; the
        variance is that of the sample plus that of the baseline.
        """
        successes, attempts = self.successes + successes, self.attempts + attempts
        if attempts < _MIN_ATTEMPTS:
            return ChangeDetector(baseline=self.baseline, successes=successes, attempts=attempts), False
        expected = self.baseline.mean
        deviation = math.sqrt(expected * (1 - expected) / attempts + self.baseline.variance)
        return ChangeDetector(baseline=self.baseline), abs(successes / attempts - expected) > _MAX_DEVIATION * deviation

    def rebased(self, posterior: BetaPosterior) -> ChangeDetector:
        """Return the detector with this baseline, if a comparison has just been made; else itself."""
        return self if self.attempts else ChangeDetector(baseline=posterior)
