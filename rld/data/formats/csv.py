"""Reads CSV and TSV files whose first line holds the column names.

Cells are separated by commas, those of TSV by tabs. Those of CSV are separated by semicolons where the first line has
some and no comma: programs write it so where the comma is the decimal sign. A cell in quotes may hold separators and
line breaks, and quotes written twice; spaces in front of a cell are no part of it, unless they stand inside its quotes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rld.data.formats.columns import require_different

SUFFIXES = (".csv", ".tsv")
"""Of the files that are read here."""

NAMES_FIRST = "if its first line holds data, write a line of names above it"

_MENDS = {
    ",": "rename the file to .csv",
    "\t": "rename the file to .tsv",
    ";": "rename the file to .csv",
    "|": "save the file with commas",
}
"""How to mend a file whose columns are separated by another character than its suffix says."""

csv.field_size_limit(1 << 30)  # characters of a cell; Python's limit is 131,072


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of each record's last line and its values by column, or a ValueError on its number of cells.

    Raises:
        ValueError: the file is not CSV, or two of its columns have one name.
    """
    return _read(path, ",;")


def read_tabs(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield what `read` does, of a file whose cells are separated by tabs.

    Raises:
        ValueError: as `read`.
    """
    return _read(path, "\t")


def _read(path: Path, separators: str) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        separator = _separator(file, separators)
        reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=True)
        columns: list[str] = []
        last_line = 0
        try:
            for cells in reader:
                last_line = reader.line_num
                if not columns:
                    columns = _columns(cells, separator)
                elif cells:
                    yield last_line, _record(columns, cells, separator)
        except csv.Error as error:
            raise ValueError(
                f"the row on line {last_line + 1} is not {path.suffix[1:].upper()}: {error}; "
                "a quoted cell ends with a quote, and a quote inside it is written twice"
            ) from error


def _separator(file: TextIO, separators: str) -> str:
    """Return the first of some separators that stands in the line of names, or the first where none does."""
    header = next((line for line in file if line.strip()), "")
    file.seek(0)
    return next((separator for separator in separators if separator in header), separators[0])


def _columns(names: list[str], separator: str) -> list[str]:
    """Return the names of the columns; of a blank line, none."""
    other = next((c for c in _MENDS if len(names) == 1 and c in names[0] and c != separator), None)
    if other is not None:
        raise ValueError(f"its columns are separated by {other!r}; {_MENDS[other]}")
    try:
        require_different([name for name in names if name])
    except ValueError as error:
        raise ValueError(f"{error}; {NAMES_FIRST}") from error
    return [name.strip() for name in names]


def _record(columns: list[str], cells: list[str], separator: str) -> dict[str, str] | ValueError:
    if len(cells) != len(columns):
        fix = f"quote a cell that has {separator!r} in it"
        return ValueError(f"{len(cells)} cells, and {len(columns)} columns; {fix}")
    return dict(zip(columns, cells, strict=True))
