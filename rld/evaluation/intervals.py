"""How far a score may be off because the held-out rows are a sample: bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rld.evaluation.metric import RowMean, ScoreMetric

NUM_RESAMPLES = 1000
"""Samples of rows, which place the ends of an interval within a few hundredths of its length."""

REACH = 1.96
"""Standard errors on each side of a mean in its 95% interval, of a normal distribution."""

_ENDS = (2.5, 97.5)
"""Percentiles between which 95% of the resampled scores lie."""


def interval(metric: ScoreMetric, columns: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ends of a score's 95% interval over rows: percentiles of the scores of rows drawn with replacement.

    The draws are the same in each call, so that the same rows give the same interval. Scores of a metric that is larger
    on rows with repetitions are lowered by the difference of their mean and the score of all rows.

    Where the score is a mean over rows that all have 1, or all 0, every draw has that score, and the ends are Wilson's
    for the share of rows that have 1, or that have more than 0. They hold for scores with partial credit too, such as
    token F1: with values from 0 to 1 the mean is no smaller than the first share, and no larger than the second.

    Args:
        metric: Computes the score.
        columns: Its columns, of one element per row.
        options: Its options.

    Source: Efron and Tibshirani 1993, section 13.3 (percentile interval); Wilson 1927 (score interval of a share).
    """
    random = np.random.default_rng(0)
    num_rows = len(next(iter(columns.values())))
    picks = (random.integers(num_rows, size=num_rows) for _ in range(NUM_RESAMPLES))
    if isinstance(metric, RowMean):
        row_values = np.asarray(metric.row_values(**columns, **options), dtype=float)
        if (row_values == 1).all() or (row_values == 0).all():
            reach = REACH**2 / (num_rows + REACH**2)
            return (1 - reach, 1.0) if row_values[0] else (0.0, reach)
        values = [row_values[pick].mean() for pick in picks]
    else:
        arrays = {name: np.asarray(column) for name, column in columns.items()}
        values = [metric.value(**{name: array[pick] for name, array in arrays.items()}, **options) for pick in picks]
    low, high = np.percentile(values, _ENDS)
    if metric.is_larger_on_resampled_rows:
        bias = np.mean(values) - metric.value(**columns, **options)
        low, high = max(low - bias, 0.0), high - bias
    return float(low), float(high)
