"""Reads items from files, grouped by level."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rld.data.formats import FORMATS, hub, read_rows
from rld.data.formats.files import require_plain, row_files
from rld.data.formats.hub import HubRows
from rld.data.items import Item
from rld.data.row_kinds import QUESTION_ANSWER, RowReader
from rld.data.stored import Selection, Stored
from rld.errors import DataError

_MOST_LISTED = 10

_MOST_WARNED = 3
"""Rows that a warning names."""


def read_items(
    source: Path | HubRows, reader: RowReader = QUESTION_ANSWER, *, skips_bad_rows: bool = False
) -> list[Sequence[Item]]:
    """Return the items of a file, of the files in a folder or of a data set of the hub, by level; they stay on disk.

    Texts are not converted, the answer "007" stays "007", and numbers are texts as they are written.

    Args:
        source: The file, a folder of files of one format, or a data set.
        reader: Makes items of its rows.
        skips_bad_rows: Whether rows that cannot be used are left out with a warning, if some can be used.

    Raises:
        DataError: lists the rows that cannot be used, with their line numbers.
        OSError: the temporary folder has no room for the items.
    """
    items: Stored[Item] = Stored()
    levels: dict[int, array[int]] = {}
    problems, num_problems = [], 0
    for file, line, record in _records(source):
        try:
            for item, level in reader.items(record):
                levels.setdefault(level, array("q")).append(len(items))
                items.append(item._replace(place=f"{file.name}:{line}"))
        except ValueError as error:
            num_problems += 1
            if num_problems <= _MOST_LISTED:
                problems.append(f"{file}:{line}: {error}")
    if problems and levels and skips_bad_rows:
        listed = "; ".join(problems[:_MOST_WARNED])
        warnings.warn(f"bad_rows: skip leaves out {num_problems} rows of {source}: {listed}", stacklevel=2)
    elif problems:
        num_unlisted = num_problems - len(problems)
        raise DataError("\n".join(problems + ([f"and {num_unlisted} rows more"] if num_unlisted else [])))
    if not levels:
        raise DataError(f"{source}: no rows")
    missing = next((i for i, level in enumerate(sorted(levels)) if i != level), None)
    if missing is not None:
        raise DataError(f"{source}: no rows of level {missing}, and some of level {max(levels)}; levels count from 0")
    return [Selection(items, levels[level]) for level in range(len(levels))]


def _records(source: Path | HubRows) -> Iterator[tuple[Path, int, Any]]:
    """Yield records with their file, or the id of their data set, and their line or row number.

    Raises:
        DataError: a file as a whole cannot be read.
    """
    if isinstance(source, HubRows):
        yield from ((Path(source.dataset), number, record) for number, record in hub.read(source))
        return
    file = source
    try:
        for file in row_files(source):
            require_plain(file)
            is_empty = True
            for line, record in read_rows(file):
                is_empty = False
                yield file, line, record
            if is_empty and file.suffix in FORMATS:  # of files of text some may be empty
                raise ValueError("no rows")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not text in UTF-8, at byte {error.start}; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {error}") from error
