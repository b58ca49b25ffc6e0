"""Reads CSV files whose first line holds the column names.

Cells are separated by commas. A cell in quotes may hold commas and line breaks, and quotes written twice; spaces in
front of a cell are no part of it, unless they stand inside its quotes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rld.data.formats.columns import require_different

NAMES_FIRST = "if its first line holds data, write a line of names above it"

_OTHER_SEPARATORS = ";\t|"

csv.field_size_limit(1 << 30)  # characters of a cell; Python's limit is 131,072


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of each record's last line and its values by column, or a ValueError on its number of cells.

    Raises:
        ValueError: the file is not CSV, or two of its columns have one name.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        columns: list[str] = []
        last_line = 0
        try:
            for cells in reader:
                last_line = reader.line_num
                if not columns:
                    columns = _columns(cells)
                elif cells:
                    yield last_line, _record(columns, cells)
        except csv.Error as error:
            raise ValueError(
                f"the row on line {last_line + 1} is not CSV: {error}; "
                "a quoted cell ends with a quote, and a quote inside it is written twice"
            ) from error


def _columns(names: list[str]) -> list[str]:
    """Return the names of the columns; of a blank line, none."""
    separator = next((c for c in _OTHER_SEPARATORS if len(names) == 1 and c in names[0]), None)
    if separator is not None:
        raise ValueError(f"its columns are separated by {separator!r}; separate them by commas")
    try:
        require_different([name for name in names if name])
    except ValueError as error:
        raise ValueError(f"{error}; {NAMES_FIRST}") from error
    return [name.strip() for name in names]


def _record(columns: list[str], cells: list[str]) -> dict[str, str] | ValueError:
    if len(cells) != len(columns):
        return ValueError(f"{len(cells)} cells, and {len(columns)} columns; quote a cell that has a comma in it")
    return dict(zip(columns, cells, strict=True))
