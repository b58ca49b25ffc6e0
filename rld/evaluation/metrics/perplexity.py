"""An `evaluate` metric: the perplexity of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rld.evaluation.metric import ScoreMetric

_LARGEST_EXPONENT = 690.0
"""Of more, exp is close to what a float can hold; no model that works comes near it."""


class Perplexity(ScoreMetric):
    """The perplexity of texts, from 1: exp(nats per token).

    Args:
        nats: The negative log-probability of each text.
        sizes: The tokens of each text.
    """

    columns = {"nats": "float64", "sizes": "float64"}

    def value(self, nats: Sequence[float], sizes: Sequence[float]) -> float:
        return float(np.exp(min(np.sum(nats) / np.sum(sizes), _LARGEST_EXPONENT)))
