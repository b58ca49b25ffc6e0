"""The files of rows that a path names, and their columns."""

from __future__ import annotations

import itertools
from pathlib import Path

from rld.data.formats import FORMATS

_NUM_ROWS = 1000
"""Rows that are looked at: those of JSON Lines need not have the same keys."""


def row_files(path: Path) -> list[Path]:
    """Return a file of rows, or those in a folder by name; other files in the folder are left out.

    Raises:
        ValueError: it is no file of a format that is read, or a folder of none or of several formats.
    """
    if not path.is_dir():
        if path.suffix not in FORMATS:
            raise ValueError(f"rows come from {', '.join(FORMATS)} files, not {path.name}")
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in FORMATS and file.is_file() and file.name[0] != ".")
    suffixes = sorted({file.suffix for file in files})
    if not files:
        raise ValueError(f"there are no {', '.join(FORMATS)} files in the folder {path.name}")
    if len(suffixes) > 1:
        raise ValueError(f"the folder {path.name} has files of several formats: {', '.join(suffixes)}")
    return files


def first_columns(path: Path) -> list[str]:
    """Return the columns that the first rows of a file or folder have, in order; none where it cannot be read."""
    columns: dict[str, None] = {}
    try:
        file = row_files(path)[0]
        for _, record in itertools.islice(FORMATS[file.suffix](file), _NUM_ROWS):
            columns |= dict.fromkeys(record) if isinstance(record, dict) else {}
    except (OSError, ValueError):  # reading the rows says what is wrong with it
        return []
    return list(columns)
