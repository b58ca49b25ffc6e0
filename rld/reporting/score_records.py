"""Scores as the record of a stage has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, TypeAlias

from pydantic import Field

from rld.reporting.file_records import Count, FileRecord, Share

REACH = 1.96
"""Standard errors on each side of a value in its 95% interval, of a normal distribution."""

_SHARES_OF_ROWS = {"solved", "exact_match", "word_match", "accuracy"}
"""Scores that are the share of held-out rows answered correctly."""

_SHARES_OF_ANSWERS = _SHARES_OF_ROWS | {"pass_at_1"}
"""Scores that are the share of answers that are correct, of one for each row or of several that are sampled."""


Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]


class ScoreRecord(FileRecord):
    """A score, and the ends of its 95% interval over rows."""

    value: Finite
    low: Finite
    high: Finite

    @property
    def error(self) -> float:
        """Its standard error."""
        return (self.high - self.low) / (2 * REACH)

    def change_from(self, other: ScoreRecord) -> ScoreRecord:
        """Return how far it is above another score, with a 95% interval that takes the two for independent."""
        change, reach = self.value - other.value, REACH * math.hypot(self.error, other.error)
        return ScoreRecord(value=change, low=change - reach, high=change + reach)

    def within(self, least: float, most: float) -> ScoreRecord:
        """Return it with an interval that does not pass the range of possible values; its error is then too small."""
        return ScoreRecord(value=self.value, low=max(self.low, least), high=min(self.high, most))


def with_interval(score: ScoreRecord | None) -> str:
    """Return a score and its 95% interval as text; a dash where there is none."""
    return "-" if score is None else f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"


Scoring: TypeAlias = dict[str, dict[str, ScoreRecord]]
"""The scores of a model: of each skill by name, its main score first."""


class ConfusionRecord(FileRecord):
    """How often each gold label was taken for each label: one list of counts per gold label."""

    labels: list[str]
    counts: list[list[Count]]


class ModelScores(FileRecord):
    """Number of parameters of a model, and its main score per skill."""

    parameters: Count
    scores: dict[str, Share]
    agreement: dict[str, ScoreRecord] = {}
    """Of a teacher: the share of each skill's held-out rows to which the student gives the same answer."""


def are_shares_of_rows(names: Iterable[str]) -> bool:
    """Return whether main scores are all shares of rows answered correctly."""
    return set(names) <= _SHARES_OF_ROWS


def are_shares_of_answers(names: Iterable[str]) -> bool:
    """Return whether main scores are all shares of answers that are correct."""
    return set(names) <= _SHARES_OF_ANSWERS


def about_scores(names: Iterable[str]) -> str:
    """Return what main scores of these names say, as a heading."""
    names = list(dict.fromkeys(names))
    if are_shares_of_rows(names):
        return "held-out rows answered correctly"
    return f"scores on held-out rows ({', '.join(names)})"
