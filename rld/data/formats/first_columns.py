"""The columns of a file, from its first rows."""

from __future__ import annotations

import itertools
from pathlib import Path

from rld.data.formats import FORMATS

_NUM_ROWS = 1000
"""Rows that are looked at: those of JSON Lines need not have the same keys."""


def first_columns(path: Path) -> list[str]:
    """Return the columns that the first rows of a file have, in order; none where it cannot be read."""
    columns: dict[str, None] = {}
    try:
        for _, record in itertools.islice(FORMATS[path.suffix](path), _NUM_ROWS):
            columns |= dict.fromkeys(record) if isinstance(record, dict) else {}
    except (OSError, ValueError):  # reading the rows says what is wrong with it
        return []
    return list(columns)
