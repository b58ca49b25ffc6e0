"""What stands in the columns of a file of rows or of a data set of the hub, in one pass over all of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from rld.data.formats import TEXT_FORMATS, hub, read_rows
from rld.data.formats.files import encoding_problem, require_plain, row_files
from rld.data.formats.hub import HubRows
from rld.errors import DataError, RecipeError

_MOST_DIGITS = 18
"""Digits of what is compared as a number."""

MOST_LABELS = 50
"""Different values of a column that are kept: one with more holds no labels."""

Source: TypeAlias = Path | HubRows
"""A file or folder of rows, or a data set of the hub."""


class Record(NamedTuple):
    """A row as a file has it."""

    place: str
    """Its file and line."""
    values: Any
    """A mapping, or a ValueError that says why it is none."""


@dataclass
class Column:
    """What the rows have in a column."""

    name: str
    num_texts: int = 0
    """Rows whose value is text with a visible character, or a whole number."""
    num_messages: int = 0
    """Rows whose value is a list of chat messages, or JSON text of one."""
    num_readable: int = 0
    """Rows whose value a template reads: text, a whole number, a list of texts, or null."""
    num_filled: int = 0
    """Rows whose value, of whatever kind, is neither empty nor null."""
    num_characters: int = 0
    longest: int = 0
    """Characters of the longest text."""
    values: dict[str, int] | None = field(default_factory=dict)
    """How many rows have each text. None: more than `MOST_LABELS` are different."""
    counts_up: bool = True
    """Whether each text is a whole number above the one before, as row numbers are."""
    _last_number: int = -1

    def add(self, value: Any) -> None:
        """Count a value of the column."""
        self._count_for_templates(value)
        if _is_messages(value):
            self.num_messages += 1
        elif _is_text(value) and (text := str(value).strip()):
            self.num_texts += 1
            self.num_characters += len(text)
            self.longest = max(self.longest, len(text))
            if self.values is not None:
                self.values[text] = self.values.get(text, 0) + 1
                self.values = self.values if len(self.values) <= MOST_LABELS else None
            if self.counts_up:
                number = int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else -1
                self.counts_up, self._last_number = number > self._last_number, number

    def _count_for_templates(self, value: Any) -> None:
        """Count whether a value can be part of a question, and whether it has something."""
        texts = value if isinstance(value, list) else [] if value is None else [value]
        self.num_readable += all(map(_is_text, texts))
        self.num_filled += any(part.strip() if isinstance(part, str) else part is not None for part in texts)


@dataclass(frozen=True)
class Survey:
    """The rows of a source.

    Attributes:
        source: The source.
        columns: Its columns by name, in their order; none where files are texts.
        num_rows: Its rows.
        num_records: Those of them that could be read as a mapping of columns to values.
    """

    source: Source
    columns: dict[str, Column]
    num_rows: int
    num_records: int

    @property
    def is_text(self) -> bool:
        """Whether its files are one text each."""
        return isinstance(self.source, Path) and row_files(self.source)[0].suffix in TEXT_FORMATS


def survey(source: Source) -> Survey:
    """Read all rows of a source.

    Raises:
        RecipeError: it cannot be read, or has no rows.
    """
    columns: dict[str, Column] = {}
    num_rows = num_records = 0
    for record in records(source):
        num_rows += 1
        num_records += isinstance(record.values, dict)
        for name, value in record.values.items() if isinstance(record.values, dict) else ():
            columns.setdefault(name, Column(name)).add(value)
    if not columns:
        raise RecipeError(f"{source}: it has no rows; give a file with rows, as docs/data.md lists them")
    return Survey(source, columns, num_rows, num_records)


def records(source: Source) -> Iterator[Record]:
    """Yield the rows of a source.

    Raises:
        RecipeError: it cannot be read; the message names the file.
    """
    if isinstance(source, HubRows):
        try:
            yield from (Record(f"{source} row {number}", values) for number, values in hub.read(source))
        except DataError as error:
            raise RecipeError(f"{error}; or give a file") from error
        return
    file = source
    try:
        for file in row_files(source):
            require_plain(file)
            yield from (Record(f"{file}:{line}", values) for line, values in read_rows(file))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: {encoding_problem(file)}") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file}: {error}") from error


def _is_text(value: Any) -> bool:
    """Tell whether a value is text, or a whole number, which is read as text."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def _is_messages(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip().startswith("[{") and ('"role"' in value or '"from"' in value)
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and ({"role", "content"} <= first.keys() or {"from", "value"} <= first.keys())
