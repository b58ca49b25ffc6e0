"""Reads items from files, grouped by level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rld.data.formats import FORMATS
from rld.data.items import Item
from rld.data.row_kinds import ROW_KINDS
from rld.data.row_kinds.fields import Fields
from rld.errors import DataError

_MOST_LISTED = 10


def read_items(
    path: Path, kind: str = "question_answer", columns: Mapping[str, str] = MappingProxyType({})
) -> list[list[Item]]:
    """Return the items of a file, one list per level.

    Texts are not converted, the answer "007" stays "007", and numbers are texts as they are written.

    Args:
        path: The file.
        kind: The kind of its rows, of `ROW_KINDS`.
        columns: Where the values that the kind reads stand, if not in columns of their names; see `Fields`.

    Raises:
        DataError: lists the rows that cannot be used, with their line numbers.
    """
    levels: dict[int, list[Item]] = {}
    problems = []
    for line, record in _records(path):
        try:
            fields = Fields(_mapping(record, kind), columns)
            items = [item._replace(place=f"{path.name}:{line}") for item in ROW_KINDS[kind].items(fields)]
            levels.setdefault(fields.level, []).extend(items)
        except ValueError as error:
            problems.append(f"{path}:{line}: {error}")
    if problems:
        num_unlisted = len(problems) - _MOST_LISTED
        raise DataError(
            "\n".join(problems[:_MOST_LISTED] + ([f"and {num_unlisted} rows more"] if num_unlisted > 0 else []))
        )
    if not levels:
        raise DataError(f"{path}: no rows")
    missing = next((i for i, level in enumerate(sorted(levels)) if i != level), None)
    if missing is not None:
        raise DataError(f"{path}: no rows of level {missing}, and some of level {max(levels)}; levels count from 0")
    return [levels[level] for level in range(len(levels))]


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the records of a file with their line numbers.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: rows come from {' or '.join(FORMATS)} files")
    try:
        yield from FORMATS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8, at byte {error.start}; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def _mapping(record: Any, kind: str) -> Mapping[str, Any]:
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"a row is a mapping with {' and '.join(ROW_KINDS[kind].names[:2])}")
    return record
