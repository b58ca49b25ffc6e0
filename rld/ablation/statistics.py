"""Statistics of paired runs, and of scores as they rise with compute. Plain numbers in, plain numbers out.

Seeds are the units: arms with the same seed are a pair, and only seeds are resampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from rld.reporting.series import Point

_MOST_EXACT = 12
"""Up to so many pairs all sign patterns are tried; of more pairs, random ones."""


def bootstrap(differences: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95% percentile interval of the mean difference, resampled over pairs (Efron 1979).

    None for a single pair. With fewer than about eight pairs it is too narrow, for it cannot leave the range of the
    differences.
    """
    if len(differences) < 2:
        return None
    values = np.asarray(differences, dtype=float)
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def sign_flips(differences: Sequence[float], draws: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of Fisher's paired randomisation test of the mean difference.

    It is the share of sign patterns whose mean is at least as far from 0 as the observed one: of all patterns up to 12
    pairs, else of `draws` random patterns and the observed one. The smallest that n pairs can give is 2 / 2^n.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) <= _MOST_EXACT:
        signs = np.array(list(itertools.product([1.0, -1.0], repeat=len(values))))
    else:
        signs = np.random.default_rng(seed).choice([1.0, -1.0], size=(draws, len(values)))
        signs = np.vstack([np.ones(len(values)), signs])
    return float((np.abs(signs @ values) >= abs(values.sum()) - 1e-12).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the same order."""
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min((len(p_values) - rank) * p_values[i], 1.0))
        corrected[i] = worst
    return corrected


def value_at(curve: Sequence[Point], x: float) -> float:
    """Return a curve's height at `x`, linear between its points and level beyond them."""
    xs, ys = zip(*curve, strict=True)
    return float(np.interp(x, xs, ys))


def area(curve: Sequence[Point], start: float, end: float) -> float:
    """Return a curve's mean height from `start` to `end`, which lies beyond; level beyond its points."""
    xs = [start, *(x for x, _ in curve if start < x < end), end]
    return float(np.trapezoid([value_at(curve, x) for x in xs], xs) / (end - start))


def reached(curve: Sequence[Point], target: float) -> float | None:
    """Return where a curve first is at `target` or above, linear between its points; None if it never is."""
    if curve[0][1] >= target:
        return curve[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if y1 >= target:
            return x0 + (target - y0) / (y1 - y0) * (x1 - x0)
    return None


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the mean of curves at all their points, as far as the shortest goes."""
    end = min(curve[-1][0] for curve in curves)
    xs = sorted({x for curve in curves for x, _ in curve if x <= end})
    return [(x, float(np.mean([value_at(curve, x) for curve in curves]))) for x in xs]
