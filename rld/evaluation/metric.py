"""The base classes of the metrics in `metrics/`, which are modules of the library `evaluate`."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import datasets
import evaluate

FOLDER = Path(__file__).parent / "metrics"
"""The folder of the metrics."""


class ScoreMetric(evaluate.Metric, ABC):  # type: ignore[misc]
    """A number that is computed from the columns of some rows.

    A subclass has its description as its docstring.
    """

    columns: ClassVar[dict[str, str]]
    """The columns that it reads, each with the data type of a row's value."""
    is_list: ClassVar[bool] = False
    """Whether a row has a list of such values."""
    is_larger_on_resampled_rows: ClassVar[bool] = False
    """Whether it is larger, on the mean, on rows drawn with replacement than on the rows; it is then at least 0."""

    @abstractmethod
    def value(self, *args: Any, **columns: Any) -> float:
        """Return the number; `columns` are sequences of one element per row, at least one, and the options."""

    def _info(self) -> evaluate.MetricInfo:
        features: dict[str, Any] = {name: datasets.Value(kind) for name, kind in self.columns.items()}
        if self.is_list:
            features = {name: datasets.List(value) for name, value in features.items()}
        text = self.__doc__ or ""
        return evaluate.MetricInfo(
            description=text, citation="", inputs_description=text, features=datasets.Features(features)
        )

    def _compute(self, **columns: Any) -> dict[str, float]:
        return {self.name: self.value(**columns)}


class RowMean(ScoreMetric, ABC):
    """A number that is the mean over rows of one number per row, each from 0 to 1."""

    @abstractmethod
    def row_values(self, *args: Any, **columns: Any) -> Sequence[float]:
        """Return one number per row."""

    def value(self, *args: Any, **columns: Any) -> float:
        return fmean(self.row_values(*args, **columns))


@functools.cache
def load_metric(name: str) -> ScoreMetric:
    """Return the metric of the file `name` in `metrics/`."""
    metric: ScoreMetric = evaluate.load(str(FOLDER / f"{name}.py"), keep_in_memory=True)
    return metric
