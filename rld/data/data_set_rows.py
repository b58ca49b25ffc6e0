"""The rows of a data set that a script hands to the trainer, by its columns `skill` and `level`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

from datasets import Dataset

from rld.errors import DataError
from rld.types import DEFAULT_SKILL, Row


class DataSetRows:
    """The rows of one skill in a data set.

    Args:
        skill: The skill's name.
        dataset: The data set.
        levels: The indices of the skill's rows, by level.

    Raises:
        DataError: a level has no rows.
    """

    def __init__(self, skill: str, dataset: Dataset, levels: Mapping[int, Sequence[int]]) -> None:
        self.num_levels = max(levels) + 1
        missing = set(range(self.num_levels)) - set(levels)
        if missing:
            raise DataError(f"train_dataset: skill {skill!r} has no rows of level {min(missing)}")
        self._dataset, self._levels = dataset, levels

    @property
    def sizes(self) -> list[int]:
        """The number of rows of each level."""
        return [len(self._levels[level]) for level in range(self.num_levels)]

    def draw(self, level: int, rng: random.Random, number: int = 0) -> Row:
        """Draw a row of a level; `number` does not matter."""
        row: Row = self._dataset[rng.choice(self._levels[level])]
        return row


def data_set_rows(dataset: Dataset) -> dict[str, DataSetRows]:
    """Return the rows of each skill of a data set; without the columns, of one skill with one level.

    Raises:
        DataError: a level without rows.
    """
    names = dataset.column_names
    skills = dataset["skill"] if "skill" in names else itertools.repeat(DEFAULT_SKILL, len(dataset))
    levels = dataset["level"] if "level" in names else itertools.repeat(0, len(dataset))
    rows_by_skill: dict[str, dict[int, list[int]]] = {}
    for i, (skill, level) in enumerate(zip(skills, levels, strict=True)):
        rows_by_skill.setdefault(str(skill), {}).setdefault(level, []).append(i)
    return {skill: DataSetRows(skill, dataset, rows) for skill, rows in rows_by_skill.items()}
