"""A score with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias


class MeasuredScore(NamedTuple):
    """A score, and the ends of its 95% interval over rows."""

    value: float
    low: float
    high: float


MeasuredScores: TypeAlias = Mapping[str, Mapping[str, MeasuredScore]]
"""The scores of each skill, or task, by name; its main score first."""
