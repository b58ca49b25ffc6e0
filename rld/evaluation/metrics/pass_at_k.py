"""An `evaluate` metric: whether one of k sampled answers is correct."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rld.evaluation.metric import RowMean
from rld.rollout.verifier import is_success


class PassAtK(RowMean):
    """The probability that one of k sampled answers is correct, mean over rows, 0 to 1.

    It is estimated without bias from n samples, c of which are correct: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. 2021 (arXiv:2107.03374), equation 1.

    Args:
        predictions: The judge's rewards for the samples of each row, k or more.
        k: The number of tries.
    """

    columns = {"predictions": "float64"}
    is_list = True

    def row_values(self, predictions: Sequence[Sequence[float]], k: int) -> Sequence[float]:
        values = []
        for rewards in predictions:
            num_wrong = sum(not is_success(reward) for reward in rewards)
            numbers = np.arange(num_wrong + 1, len(rewards) + 1)
            values.append(1.0 if num_wrong < k else 1.0 - float(np.prod(1.0 - k / numbers)))
        return values
