"""Reads items from files, grouped by level."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rld.data.formats import FORMATS, TEXT_FORMATS, hub, read_rows
from rld.data.formats.files import encoding_problem, other_files, require_plain, row_files
from rld.data.formats.hub import HubRows
from rld.data.items import Item
from rld.data.listing import first_few
from rld.data.row_kinds import QUESTION_ANSWER, RowReader
from rld.data.row_kinds.fields import columns_named_in
from rld.data.row_problems import RowProblems
from rld.data.stored import Selection, Stored
from rld.errors import DataError
from rld.utils.os_errors import is_system_failure

_MOST_WARNED = 5
"""Files that a warning names."""


def read_items(
    *sources: Path | HubRows, reader: RowReader = QUESTION_ANSWER, skill: str = "", skips_bad_rows: bool = False
) -> list[list[Sequence[Item]]]:
    """Return the items of each source of a skill, by level; they stay on disk.

    Texts are not converted, the answer "007" stays "007", and numbers are texts as they are written.

    Args:
        sources: Files, folders of files of one format, or data sets of the hub.
        reader: Makes items of their rows.
        skill: The skill's name, which errors name.
        skips_bad_rows: Whether rows that cannot be used are left out with a warning, if some can be used.

    Raises:
        DataError: lists the rows of all sources that cannot be used, with their line numbers.
        OSError: the temporary folder has no room for the items.
    """
    problems = RowProblems(skill, reader)
    rows_by_source = [(source, _read(source, reader, problems)) for source in sources]
    problems.settle(skips_bad_rows)
    for source, rows in rows_by_source:
        if rows.absent:
            raise DataError(f"{source}: no row has a column {min(rows.absent)!r}, which skills.{skill}.columns names")
    separator = reader.options.get("document_separator")
    if separator is not None and all(len(rows.items) <= rows.num_texts for _, rows in rows_by_source):
        raise DataError(
            f"skills.{skill}.document_separator: {separator!r} stands between no two documents of {sources[0]}; write "
            'it as it is there, a line break as "\\n" in double quotes, or leave it out'
        )
    return [_by_level(source, rows) for source, rows in rows_by_source]


class _Rows(NamedTuple):
    """What a source has.

    Attributes:
        items: The items of its rows.
        levels: Which of them each level has.
        absent: Columns that the reader names and no row has.
        num_texts: Its rows, or files that are one text each.
    """

    items: Stored[Item]
    levels: dict[int, array[int]]
    absent: set[str]
    num_texts: int


def _read(source: Path | HubRows, reader: RowReader, problems: RowProblems) -> _Rows:
    items: Stored[Item] = Stored()
    levels: dict[int, array[int]] = {}
    absent = {column for entry in reader.columns.values() for column in columns_named_in(entry)}
    num_texts, previous = 0, None
    empty: list[Path] = []
    for file, line, record in _records(source, reader.options.get("document_separator"), empty):
        num_texts += file != previous or file.suffix not in TEXT_FORMATS
        previous = file
        if absent and isinstance(record, Mapping):
            absent -= record.keys()
        try:
            for item, level in reader.items(record):
                levels.setdefault(level, array("q")).append(len(items))
                items.append(item._replace(place=f"{file.name}:{line}"))
            problems.add(file, line, None)
        except ValueError as error:
            problems.add(file, line, error)
    _tell_of_left_out(source, empty)
    return _Rows(items, levels, absent, num_texts)


def _tell_of_left_out(source: Path | HubRows, empty: Sequence[Path]) -> None:
    """Warn of files in a folder that are left out: those of other formats, and texts without a visible character."""
    if not isinstance(source, Path) or not source.is_dir():
        return
    for what, files in (
        ("of other formats", other_files(source)),
        ("without text", [file.relative_to(source) for file in empty]),
    ):
        if files:
            count = "1 file" if len(files) == 1 else f"{len(files):,} files"
            warnings.warn(
                f"the folder {source} has {count} {what}, left out: {first_few(files, _MOST_WARNED)}", stacklevel=4
            )


def _by_level(source: Path | HubRows, rows: _Rows) -> list[Sequence[Item]]:
    """Return the items of each level.

    Raises:
        DataError: there are none, or a level has none.
    """
    levels = rows.levels
    if not levels:
        raise DataError(f"{source}: no rows")
    missing = next((i for i, level in enumerate(sorted(levels)) if i != level), None)
    if missing is not None:
        raise DataError(f"{source}: no rows of level {missing}, and some of level {max(levels)}; levels count from 0")
    return [Selection(rows.items, levels[level]) for level in range(len(levels))]


def _records(source: Path | HubRows, separator: str | None, empty: list[Path]) -> Iterator[tuple[Path, int, Any]]:
    """Yield records with their file, or the id of their data set, and their line or row number.

    Args:
        source: The file, folder or data set.
        separator: What stands between two documents of a file that is a text.
        empty: Texts without a visible character are added to it.

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
            for line, record in read_rows(file, separator):
                is_empty = False
                yield file, line, record
            if is_empty and file.suffix in FORMATS:
                raise ValueError("no rows")
            if is_empty:
                empty.append(file)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: {encoding_problem(file)}") from error
    except (OSError, ValueError) as error:
        if is_system_failure(error):
            raise
        raise DataError(f"{file}: {error}") from error
