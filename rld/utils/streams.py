"""Standard output and error that mask secrets, can print every text, and do without a reader."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from rld.utils.secrets import masked_text

STANDARD_OUTPUT = "the standard output"
"""What an error of writing there names as its file."""


class SafeStream:
    """A stream that masks secrets in what is written, and escapes characters that its encoding lacks.

    Once the reader has closed a pipe, as in `rld list | head -1`, or the terminal is closed, what is written is
    dropped, and the command goes on.

    Args:
        stream: The stream that is written to. None, as where a shell has closed it: nowhere.
        name: What an error of writing names as its file. None: what cannot be written is dropped, as messages are,
            for a command does not fail because nobody can be told of it.
    """

    def __init__(self, stream: TextIO | None, name: str | None = None) -> None:
        self._name = name
        # opened at the start of a command, the null device takes the place of the closed stream, and no other file does
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self._is_terminal = self._stream.isatty()  # asked now, for one that is closed no longer says so

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._dropping():
            self._stream.write(masked_text(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Once nobody reads, let what is written go nowhere, also what Python flushes when the process ends.

        Raises:
            OSError: it could not be written, though somebody reads; what is written from now on goes nowhere.
        """
        try:
            yield
        except OSError as error:
            self._drop()
            nobody_reads = isinstance(error, BrokenPipeError) or (self._is_terminal and error.errno == errno.EIO)
            if self._name is not None and not nobody_reads:
                error.filename = self._name
                raise

    def _drop(self) -> None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Write standard output and error through a `SafeStream` inside the block, and tracebacks that end the process."""
    output, error = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeStream(output, STANDARD_OUTPUT), SafeStream(error)
    try:
        yield
    except Exception:
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = _print_masked
        raise
    finally:
        sys.stdout, sys.stderr = output, error


def _print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    SafeStream(sys.stderr).write("".join(traceback.format_exception(kind, error, trace)))
