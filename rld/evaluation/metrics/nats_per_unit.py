"""An `evaluate` metric: the nats that a model needs for a byte, or a token, of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rld.evaluation.metric import ScoreMetric


class NatsPerUnit(ScoreMetric):
    """The sum of all texts' nats divided by the sum of their sizes, from 0.

    Args:
        nats: The negative log-probability of each text.
        sizes: The bytes, or tokens, of each text.
    """

    columns = {"nats": "float64", "sizes": "float64"}

    def value(self, nats: Sequence[float], sizes: Sequence[float]) -> float:
        return float(np.sum(nats) / np.sum(sizes))
