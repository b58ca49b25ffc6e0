"""Readers of row files by format. To add a format, write a module with a function `read` and add it to `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from rld.data.formats import csv, json_array, jsonl, parquet, text

Read: TypeAlias = Callable[[Path], Iterator[tuple[int, Any]]]
"""Yields the number of each row's last line, and the row as a mapping, or a ValueError that describes its defect.

Where a format has no lines, the number is the row's.

Raises OSError or ValueError if the file as a whole cannot be read."""

FORMATS: dict[str, Read] = {
    ".jsonl": jsonl.read,
    ".csv": csv.read,
    ".tsv": csv.read_tabs,
    ".json": json_array.read,
    ".parquet": parquet.read,
}
"""The reader of each suffix of files of rows."""

TEXT_FORMATS: dict[str, Read] = dict.fromkeys(text.SUFFIXES, text.read)
"""The reader of each suffix of files that are one text."""


def read_rows(path: Path, separator: str | None = None) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file as the reader of its suffix does.

    Args:
        path: The file.
        separator: What stands between two documents of a file that is a text. None: it is one document.
    """
    if separator is not None and path.suffix in TEXT_FORMATS:
        return text.read_documents(path, separator)
    return (FORMATS | TEXT_FORMATS)[path.suffix](path)
