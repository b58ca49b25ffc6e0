"""The values of a record by name, wherever a skill's `columns` say that they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")

_MOST_DIGITS = 18
"""Digits of a level that is written as text."""


def columns_named_in(source: str) -> list[str]:
    """Return the columns that an entry of `columns` names: those in braces of a template, else the one column."""
    return _PLACEHOLDER.findall(source) or [source]


class MissingColumn(ValueError):
    """A record lacks a column.

    Args:
        name: The value that stands in the column.
        column: The column.
        record: The record.
    """

    def __init__(self, name: str, column: str, record: Mapping[str, Any]) -> None:
        self.name, self.column, self.record = name, column, record
        place = f"no {name}" if column == name else f"{name}: no column {column!r}"
        super().__init__(f"{place}, but {', '.join(map(repr, record)):.80}")


class Fields:
    """The values of a record by name.

    Args:
        record: The values by column.
        columns: Of each name that is not its column's: the column, or a template with columns in braces.
    """

    def __init__(self, record: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        self._record, self._columns = record, columns
        self._read = set(columns_named_in(columns.get("level", "level")))

    def __contains__(self, name: str) -> bool:
        return all(column in self._record for column in columns_named_in(self._columns.get(name, name)))

    def column(self, name: str) -> str:
        """Return where a value stands, by which errors name it: its column, or its name where a template makes it."""
        source = self._columns.get(name, name)
        return source if columns_named_in(source) == [source] else name

    def value(self, name: str) -> Any:
        """Return a value as the file has it, or a filled template.

        Raises:
            MissingColumn: the record has no such column.
            ValueError: a column of the template is not text.
        """
        source = self._columns.get(name, name)
        names = columns_named_in(source)
        missing = next((column for column in names if column not in self._record), None)
        if missing is not None:
            raise MissingColumn(name, missing, self._record)
        self._read.update(names)
        if names == [source]:
            return self._record[source]
        texts = {column: _lines(self._record[column], column) for column in names}
        return _PLACEHOLDER.sub(lambda match: texts[match[1]], source)

    def text(self, name: str) -> str:
        """Return a value that is text, or a whole number as text.

        Raises:
            ValueError: it is missing, empty, or something else.
        """
        return text(self.value(name), name)

    @property
    def level(self) -> int:
        """The record's level, 0 where it has none.

        Raises:
            ValueError: it is no whole number from 0.
        """
        level = self.value("level") if "level" in self else 0
        if isinstance(level, str) and level.strip().isdecimal() and len(level) <= _MOST_DIGITS:
            level = int(level)
        if not isinstance(level, int) or isinstance(level, bool) or level < 0:
            raise ValueError(f"level should be a whole number from 0, not {level!r:.80}")
        return level

    def others(self, values: Mapping[str, str] = MappingProxyType({})) -> str:
        """Return the columns whose values were not read, and other values, as JSON text; "" if there are none."""
        others = {column: value for column, value in self._record.items() if column not in self._read} | dict(values)
        return json.dumps(others, default=str, ensure_ascii=False) if others else ""


def _lines(value: Any, column: str) -> str:
    """Return the text of a column in a template; a list of texts is one text a line, null is none."""
    if value is None:
        return ""
    values = value if isinstance(value, list) else [value]
    return "\n".join(text(value, column, is_required=False) for value in values)


def text(value: Any, name: str, is_required: bool = True) -> str:
    """Return a value as text: text as it is, a whole number in digits.

    Raises:
        ValueError: it is neither, or without a visible character where one is required.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    is_empty = not value.strip() if isinstance(value, str) else value == []
    if is_empty and is_required:
        raise ValueError(f"{name} is empty")
    if not isinstance(value, str):
        raise ValueError(f"{name} should be text, not {value!r:.80}")
    return value
