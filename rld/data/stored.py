"""Sequences whose values are on disk, so that files of rows may be larger than memory."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, overload

T = TypeVar("T")


class Stored(Sequence[T]):
    """Values in a temporary file without a name, which is gone with the object; memory holds eight bytes of each.

    The file is read and not mapped, since pages of a mapped file count as memory of the process.

    Args:
        values: The first values.

    Raises:
        OSError: the temporary folder, which the error names, has no room for them.
    """

    def __init__(self, values: Iterable[T] = ()) -> None:
        with _names_folder():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the object
        self._ends = array("q", [0])
        for value in values:
            self.append(value)

    def append(self, value: T) -> None:
        """Add a value, which can be pickled."""
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        with _names_folder():
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Selection[T]: ...

    def __getitem__(self, index: int | slice) -> T | Selection[T]:
        """Return a value as a new object, or a part of the sequence."""
        place = range(len(self))[index]
        if isinstance(place, range):
            return Selection(self, place)
        with _names_folder():
            self._file.flush()
        start, end = self._ends[place], self._ends[place + 1]
        value: T = pickle.loads(os.pread(self._file.fileno(), end - start, start))  # processes may share the file
        return value


class Selection(Sequence[T]):
    """Some values of a sequence, of which memory holds the places alone.

    Args:
        values: The sequence.
        places: Where the values are in it.
    """

    def __init__(self, values: Sequence[T], places: Iterable[int]) -> None:
        self._values, self._places = values, array("q", places)

    @classmethod
    def where(cls, values: Sequence[T], condition: Callable[[T], bool]) -> Selection[T]:
        """Return the values that meet a condition."""
        return cls(values, (i for i, value in enumerate(values) if condition(value)))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Selection[T]: ...

    def __getitem__(self, index: int | slice) -> T | Selection[T]:
        if isinstance(index, slice):
            return Selection(self._values, self._places[index])
        return self._values[self._places[index]]


@contextmanager
def _names_folder() -> Iterator[None]:
    """Name the temporary folder in errors of the operating system."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error
