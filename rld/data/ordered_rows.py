"""The rows of a skill in levels of equal size, from those that are easiest for a teacher to the hardest.

Shapes: U units.
"""

from __future__ import annotations

import itertools
import random
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from rld.data.skill_rows import SkillRows
from rld.errors import DataError
from rld.types import Row

NUM_LEVELS = 10
"""Levels of a skill; fewer where it has fewer units."""

_ROWS_PER_UNIT = 32
"""Rows by which a level of a generator is judged."""


class OrderedRows:
    """The rows of a skill in levels by difficulty, 0 the easiest.

    A unit is what has a difficulty: each row of a file, whatever its own level; of a generator, whose rows have no end,
    each of its levels. Until `arrange` is called units are in their own order.

    Args:
        source: The rows of the skill.

    Raises:
        DataError: the skill is one of documents, which are drawn in passes over all of them.
    """

    def __init__(self, source: SkillRows) -> None:
        if source.is_text:
            reason = "documents are learnt in passes over all of them, and have no order"
            raise DataError(f"skill {source.skill!r}: {reason}")
        self.source = source
        self._items = source.training_items()
        self._starts = list(itertools.accumulate(map(len, self._items), initial=0))
        self.num_units = self._starts[-1] if self._items else source.num_levels
        self.num_levels = min(NUM_LEVELS, self.num_units)
        self.arrange(range(self.num_units))

    @property
    def is_file(self) -> bool:
        """Whether its units are the rows of a file."""
        return bool(self._items)

    def arrange(self, difficulties_U: Sequence[float]) -> None:
        """Put the units into levels of equal size by their difficulties; of equal ones the first is the easiest."""
        levels_U = [0] * self.num_units
        order_U = sorted(range(self.num_units), key=lambda unit: difficulties_U[unit])
        for rank, unit in enumerate(order_U):
            levels_U[unit] = rank * self.num_levels // self.num_units
        self._set_levels(levels_U)

    def _set_levels(self, levels_U: Sequence[int]) -> None:
        self.levels_U = list(levels_U)
        """The level of each unit."""
        self._units = [array("q") for _ in range(self.num_levels)]
        for unit, level in enumerate(levels_U):
            self._units[level].append(unit)

    def examples(self) -> Iterator[tuple[int, Row]]:
        """Yield units with rows by which they are judged, the same in every call.

        Raises:
            DataError: a row has no gold answer.
        """
        count = _ROWS_PER_UNIT * self.num_units
        rows = map(self._file_row, range(self.num_units)) if self.is_file else self.source.probe(count)
        for number, row in enumerate(rows):
            if not row["answer"]:
                reason = f"skill {self.source.skill!r} has questions without a gold answer"
                raise DataError(f"{reason}, by which a teacher's loss is measured")
            yield number if self.is_file else row["level"], row

    def require_gold(self) -> None:
        """Check that each row by which a unit is judged has a gold answer.

        Raises:
            DataError: one has none.
        """
        for _ in self.examples():
            pass

    def draw(self, level: int, rng: random.Random, number: int = 0) -> Row:
        """Draw a row of a level; the same random state gives the same row."""
        unit = rng.choice(self._units[level])
        row = self._file_row(unit) if self.is_file else self.source.draw(unit, rng, number)
        return {**row, "level": level}

    def probe(self, count: int) -> list[Row]:
        """Return training rows for probes."""
        return self.source.probe(count)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"levels": self.levels_U}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the levels that `state_dict` returned."""
        self._set_levels(state["levels"])

    def _file_row(self, unit: int) -> Row:
        own_level = bisect_right(self._starts, unit) - 1
        return self.source.row(self._items[own_level][unit - self._starts[own_level]], own_level)
