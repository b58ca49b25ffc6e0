"""Reads items from files, grouped by level."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rld.data.formats import FORMATS
from rld.data.items import Item
from rld.errors import DataError

_MOST_LISTED = 10

_MOST_DIGITS = 18
"""Digits of a level that is written as text."""


def read_items(path: Path) -> list[list[Item]]:
    """Return the items of a file, one list per level.

    Texts are not converted, the answer "007" stays "007", and numbers are texts as they are written.

    Raises:
        DataError: lists the rows that cannot be used, with their line numbers.
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: rows come from {' or '.join(FORMATS)} files")
    levels: dict[int, list[Item]] = {}
    problems = []
    try:
        for line, record in FORMATS[path.suffix](path):
            try:
                item, level = _item(record)
                levels.setdefault(level, []).append(item._replace(place=f"{path.name}:{line}"))
            except ValueError as error:
                problems.append(f"{path}:{line}: {error}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8, at byte {error.start}; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
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


def _item(record: Any) -> tuple[Item, int]:
    """Return the item of a record, and its level.

    Raises:
        ValueError: the record is not a valid item; the message says why.
    """
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError("a row is a mapping with question and answer")
    question, answer = (_text(record, key) for key in ("question", "answer"))
    level = record.get("level", 0)
    if isinstance(level, str) and level.strip().isdecimal() and len(level) <= _MOST_DIGITS:
        level = int(level)
    if not isinstance(level, int) or isinstance(level, bool) or level < 0:
        raise ValueError(f"level should be a whole number from 0, not {level!r:.80}")
    return Item(question, answer), level


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        names = ", ".join(map(repr, record))
        raise ValueError(
            f"no {key}, but {names:.80}" if key not in record else f"{key} should be text, not {value!r:.80}"
        )
    return value
