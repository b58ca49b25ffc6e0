"""An `evaluate` metric: the perplexity of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rld.evaluation.metric import ScoreMetric


class Perplexity(ScoreMetric):
    """The perplexity of texts, from 1: exp(nats per token).

    Args:
        nats: The negative log-probability of each text.
        sizes: The tokens of each text.
    """

    columns = {"nats": "float64", "sizes": "float64"}

    def value(self, nats: Sequence[float], sizes: Sequence[float]) -> float:
        return float(np.exp(np.sum(nats) / np.sum(sizes)))
