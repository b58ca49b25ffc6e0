"""An `evaluate` metric: how far a model's confidence is from the share of labels that are correct."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rld.evaluation.metric import ScoreMetric

NUM_BINS = 15
"""Intervals of confidence of equal width, as many as in the paper."""


class CalibrationError(ScoreMetric):
    """The expected calibration error, 0 to 1: the distance of confidence and accuracy, mean over rows.

    Confidence is the probability of the likeliest label. Rows are put into 15 intervals of confidence of equal width,
    in each of which mean confidence and accuracy are compared. By chance alone, the error of few rows is larger than
    that of many.

    Source: Guo et al. 2017 (arXiv:1706.04599), equation 3.

    Args:
        predictions: The labels.
        references: The gold labels.
        confidences: The probability of each predicted label.
    """

    columns = {"predictions": "string", "references": "string", "confidences": "float64"}
    is_larger_on_resampled_rows = True

    def value(self, predictions: Sequence[str], references: Sequence[str], confidences: Sequence[float]) -> float:
        is_correct = np.asarray(predictions) == np.asarray(references)
        bins = np.clip(np.ceil(np.asarray(confidences) * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
        gaps = np.bincount(bins, weights=is_correct - np.asarray(confidences), minlength=NUM_BINS)
        return float(np.abs(gaps).sum() / len(bins))
