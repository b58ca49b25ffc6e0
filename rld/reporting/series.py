"""Smoothing and thinning of long, noisy series, and round numbers for axes. Plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import TypeAlias

Point: TypeAlias = tuple[float, float]
"""Step and value; steps rise along a series."""

MAX_POINTS = 200
"""Of a smoothed series; an envelope has up to twice as many."""

_LARGE_GAP = 10
"""A gap of more than so many usual steps cuts a series."""

_SMOOTHING = 0.02
"""Standard deviation of the smoothing window, as a share of the series' length."""


def segments(points: Sequence[Point]) -> list[Sequence[Point]]:
    """Cut a series at large gaps, so that no stroke is drawn where nothing was measured."""
    if len(points) < 3:
        return [points] if points else []
    usual_step = median(b[0] - a[0] for a, b in pairwise(points))
    cuts = [i for i, (a, b) in enumerate(pairwise(points), 1) if b[0] - a[0] > _LARGE_GAP * usual_step]
    return [points[i:j] for i, j in pairwise([0, *cuts, len(points)])]


def smooth(points: Sequence[Point], geometric: bool = False) -> list[Point]:
    """Average `points` in at most `MAX_POINTS` bins, then over a Gaussian window that the ends cut off.

    `geometric`: average logarithms, as fits a logarithmic axis; the values must be positive.
    """
    if geometric:
        return [(step, math.exp(value)) for step, value in smooth([(step, math.log(v)) for step, v in points])]
    bins = [(fmean(step for step, _ in part), fmean(value for _, value in part)) for part in _binned(points)]
    sigma = _SMOOTHING * len(bins)
    reach = math.ceil(2.5 * sigma) if sigma >= 0.5 else 0
    window = [math.exp(-0.5 * (d / sigma) ** 2) for d in range(-reach, reach + 1)] if reach else [1.0]
    smoothed = []
    for i, (step, _) in enumerate(bins):
        indices = range(max(0, i - reach), min(len(bins), i + reach + 1))
        weights = [window[j - i + reach] for j in indices]
        smoothed.append((step, sum(w * bins[j][1] for w, j in zip(weights, indices, strict=True)) / sum(weights)))
    return smoothed


def envelope(points: Sequence[Point]) -> list[Point]:
    """Return the lowest and the highest point of each bin, in their order, so that no spike is lost."""
    extremes = []
    for part in _binned(points):
        extremes += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return extremes


def change_points(points: Sequence[Point]) -> list[Point]:
    """Return the points at which the value changes, at most one for each bin, and the last point."""
    changes = [point for i, point in enumerate(points) if i == 0 or point[1] != points[i - 1][1]]
    thin = [part[-1] for part in _binned(changes)]
    return thin if not points or thin[-1] == points[-1] else [*thin, points[-1]]


def _binned(points: Sequence[Point]) -> list[Sequence[Point]]:
    size = max(math.ceil(len(points) / MAX_POINTS), 1)
    return [points[i : i + size] for i in range(0, len(points), size)]


def axis_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` + 1 round numbers from `low` to `high`, evenly spaced.

    >>> axis_ticks(0, 1, 4)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> axis_ticks(3, 297, 5)
    [100.0, 200.0]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    space = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / space - 1e-9), math.floor(high / space + 1e-9)
    return [float(f"{space * i:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten from `low` to `high`, thinned to six; where there are few, 1, 2 and 5 of each.

    >>> log_ticks(0.05, 300)
    [0.1, 1.0, 10.0, 100.0]
    """
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    if len(powers) >= 3:
        return [10.0**power for power in powers if power % math.ceil(len(powers) / 6) == 0]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [t * 10.0**power for power in decades for t in (1, 2, 5) if low <= t * 10.0**power <= high]


def number(value: float) -> str:
    """Return a number as a short text.

    >>> [number(x) for x in (0, 0.5, 0.12345, 12.5, 300, 12_500, 1_500_000, 0.00012)]
    ['0', '0.5', '0.123', '12.5', '300', '12.5k', '1.5M', '1.2e-4']
    """
    size = abs(value)
    if size >= 1e4:
        power = min(int(math.log10(size) + 1e-12) // 3, 7)
        return f"{value / 1000.0**power:.3g}{'kMGTPEZ'[power - 1]}"
    if 0 < size < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}" if size < 1000 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that it has one of.

    >>> duration(5400)
    '1.5 h'
    """
    units = ("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)
    unit, size = next((pair for pair in units if seconds >= pair[1]), ("s", 1))
    number = seconds / size
    return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
