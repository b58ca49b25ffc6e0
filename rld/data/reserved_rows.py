"""Rows of target skills that a stage measures and does not train on."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable

from rld.data.skill_rows import SkillRows
from rld.errors import DataError
from rld.types import Row

_DRAWS_PER_ROW = 4
"""Rows that are drawn for each one that is reserved, since rows of a small file repeat."""

_MOST_TRIES = 200
"""Consecutive draws of reserved rows after which nothing is taken to be left."""


def reserved_rows(source: SkillRows, count: int) -> list[Row]:
    """Return up to `count` training rows that differ, of a small level about a third of its rows at most.

    They are the same in every run with the recipe's seed.

    Raises:
        DataError: no level has three different rows.
    """
    rows = {_key(row): row for row in source.probe(_DRAWS_PER_ROW * count)}
    num_rows, num_reserved = Counter(row["level"] for row in rows.values()), Counter[int]()
    result: list[Row] = []
    for row in rows.values():
        level = row["level"]
        if num_reserved[level] < num_rows[level] // 3 and len(result) < count:
            num_reserved[level] += 1
            result.append(row)
    if not result:
        raise DataError(f"skill {source.skill!r}: too few rows to measure a target by a third of them; give it more")
    return result


class WithoutRows:
    """The rows of a skill but for some of them.

    Args:
        source: The rows of the skill.
        rows: Rows that are left out.
    """

    def __init__(self, source: SkillRows, rows: Iterable[Row]) -> None:
        self.source, self.num_levels = source, source.num_levels
        self._left_out = {_key(row) for row in rows}

    def draw(self, level: int, rng: random.Random, number: int = 0) -> Row:
        """Draw a row of a level as the source does; what is left out is drawn anew, or followed by the next piece.

        Raises:
            DataError: all rows of the level seem to be left out.
        """
        for i in range(_MOST_TRIES):
            row = self.source.draw(level, rng, number + i)
            if _key(row) not in self._left_out:
                return row
        raise DataError(
            f"skill {self.source.skill!r}, level {level}: all rows seem to be those by which the target is measured; "
            "give it more rows"
        )

    def probe(self, count: int) -> list[Row]:
        """Return up to `count` training rows for probes, but for those that are left out."""
        rows = [row for row in self.source.probe(_DRAWS_PER_ROW * count) if _key(row) not in self._left_out]
        return rows[:count]


def _key(row: Row) -> str:
    return json.dumps([row["prompt"], row["answer"]], sort_keys=True)
