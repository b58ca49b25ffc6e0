"""An `evaluate` metric: the geometric mean of the probability of a byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rld.evaluation.metric import ScoreMetric


class ByteProbability(ScoreMetric):
    """The probability of a byte, geometric mean over all bytes of all texts, 0 to 1: exp(-nats per byte).

    Args:
        nats: The negative log-probability of each text.
        sizes: The bytes of each text.
    """

    columns = {"nats": "float64", "sizes": "float64"}

    def value(self, nats: Sequence[float], sizes: Sequence[float]) -> float:
        return float(np.exp(-np.sum(nats) / np.sum(sizes)))
