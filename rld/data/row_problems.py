"""Rows of a skill's files that cannot be used: each problem is told once, with its rows and with what mends it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rld.data.formats import csv
from rld.data.listing import first_few
from rld.data.row_kinds import ROW_KINDS, RowReader
from rld.data.row_kinds.fields import MissingColumn, columns_named_in
from rld.data.row_kinds.labelled import UnknownLabel
from rld.errors import DataError
from rld.utils.suggestions import hint, nearest

_MOST_KEPT = 1000
"""Different problems that are kept apart; where each row has one of its own, the others are only counted."""

_MOST_LISTED = 10
"""Problems, labels and columns that an error lists."""

_MOST_WARNED = 3
"""Problems that a warning lists."""

_MOST_LINES = 5
"""Lines of a problem that are named."""

_OF_MESSAGES = ("messages", "prompt")
"""Values that may be lists of messages."""

_ADVICE = "mend these rows, or leave out all such rows by bad_rows: skip in the recipe"


@dataclass
class _Problem:
    """Rows of a file that cannot be used for one reason.

    Attributes:
        file: The file.
        error: What is wrong with the first one.
        lines: The lines of the first ones.
        count: How many there are.
    """

    file: Path
    error: ValueError
    lines: list[int] = field(default_factory=list)
    count: int = 0

    @property
    def place(self) -> str:
        return f"{self.file}:{self.lines[0]}"

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.place}: {self.error}"
        rows = "1 row more" if self.count == 2 else f"{self.count - 1:,} rows more"
        lines = ", ".join([*map(str, self.lines[1:]), *(["..."] if self.count > len(self.lines) else [])])
        return f"{self.place}: {self.error}; so in {rows}: {lines}"


class RowProblems:
    """The rows of one skill's files that cannot be used.

    Args:
        skill: The skill's name.
        reader: What reads its rows.
    """

    def __init__(self, skill: str, reader: RowReader) -> None:
        self._skill, self._reader = skill, reader
        self._problems: dict[Hashable, _Problem] = {}
        self._num_rows = Counter[Path]()
        self._num_bad = Counter[Path]()

    def add(self, file: Path, line: int, error: ValueError | None) -> None:
        """Count a row, and note what is wrong with it; None: it can be used."""
        self._num_rows[file] += 1
        if error is None:
            return
        self._num_bad[file] += 1
        reason = (error.name, error.column) if isinstance(error, MissingColumn) else str(error)
        if (file, reason) in self._problems or len(self._problems) < _MOST_KEPT:
            problem = self._problems.setdefault((file, reason), _Problem(file, error))
            problem.count += 1
            if problem.count <= _MOST_LINES:
                problem.lines.append(line)

    def settle(self, is_skipped: bool) -> None:
        """Refuse the rows that cannot be used, or warn that they are left out.

        Raises:
            DataError: there are some, and they are not skipped, or no row of a file can be used.
        """
        num_bad = self._num_bad.total()
        lines = dict(self._lines())
        some_are_good = all(count < self._num_rows[file] for file, count in self._num_bad.items())
        if num_bad and is_skipped and some_are_good:
            listed = "; ".join([*lines][:_MOST_WARNED])
            rows = "1 row" if num_bad == 1 else f"{num_bad:,} rows"
            warnings.warn(f"skill '{self._skill}': bad_rows: skip leaves out {rows}: {listed}", stacklevel=3)
        elif num_bad:
            num_others = num_bad - sum([*lines.values()][:_MOST_LISTED])
            others = [f"and {num_others:,} rows more"] if num_others else []
            advice = [_ADVICE] if some_are_good else []
            raise DataError("\n".join([*[*lines][:_MOST_LISTED], *others, *dict.fromkeys(self._mends()), *advice]))

    def _lines(self) -> Iterator[tuple[str, int]]:
        """Yield a line for each problem, with the number of its rows."""
        counts, places = Counter[str](), dict[str, str]()
        for problem in self._problems.values():
            match problem.error:
                case UnknownLabel(label=label):
                    counts[label] += problem.count
                    places.setdefault(label, problem.place)
                case MissingColumn(column=column, record=record) if self._is_of_file(problem):
                    columns = first_few((f"{name!r:.80}" for name in record), _MOST_LISTED)
                    yield f"{problem.file}: no row has a column {column!r}; the first row has {columns}", problem.count
                case _:
                    yield str(problem), problem.count
        if counts:
            yield self._unknown_labels(counts, places), counts.total()

    def _unknown_labels(self, counts: Counter[str], places: Mapping[str, str]) -> str:
        labels = self._reader.options["labels"]
        listed = [
            f"{label!r:.80} on {count:,} row{'s' if count > 1 else ''} ({places[label]}"
            + (f"; perhaps {near!r})" if (near := nearest(label, labels)) else ")")
            for label, count in counts.most_common(_MOST_LISTED)
        ]
        others = f" and {len(counts) - _MOST_LISTED} others" if len(counts) > _MOST_LISTED else ""
        return f"labels that skills.{self._skill}.labels has not: {', '.join(listed)}{others}"

    def _mends(self) -> Iterator[str]:
        """Yield what mends the problems, beside the rows themselves."""
        place, kind = f"skills.{self._skill}", self._reader.kind
        if any(isinstance(problem.error, UnknownLabel) for problem in self._problems.values()):
            names = ", ".join(map(repr, [*self._reader.options["labels"]][:_MOST_LISTED]))
            yield f"{place}.labels has {names}; name there each label of the files with the words that say it"
        for problem in self._problems.values():
            if isinstance(problem.error, MissingColumn) and self._is_of_file(problem):
                name, column, record = problem.error.name, problem.error.column, problem.error.record
                if column in columns_named_in(self._reader.columns.get(name, "")):
                    yield f"{place}.columns names {column!r} as {name}, of held-out rows too{hint(column, record)}"
                else:
                    yield (
                        f"kind: {kind} reads the columns {', '.join(ROW_KINDS[kind].names)}; say by {place}.columns "
                        f"where they stand, as in {_example(name, record)}, or set {place}.kind to what the rows are"
                    )
                if problem.file.suffix in csv.SUFFIXES:
                    yield f"{problem.file.name}: {csv.NAMES_FIRST}"

    def _is_of_file(self, problem: _Problem) -> bool:
        """Whether all rows of its file have a problem."""
        return problem.count == self._num_rows[problem.file]


def _example(name: str, record: Mapping[str, Any]) -> str:
    """Return an entry of `columns` with the likely column, messages or one of a similar name, or all to choose from."""
    conversations = [column for column, value in record.items() if name in _OF_MESSAGES and _are_messages(value)]
    likely = next(iter(conversations), None) or nearest(name, record)
    if likely is not None or not record:
        return f"columns: {{{name}: {likely or 'COLUMN':.80}}}"
    columns = first_few((f"{column:.80}" for column in record), _MOST_LISTED)
    return f"columns: {{{name}: COLUMN}} with one of {columns}"


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(message, dict) for message in value)
