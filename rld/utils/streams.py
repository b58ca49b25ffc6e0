"""Standard output and error that mask secrets and can print every text, whatever their encoding."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from rld.utils.secrets import masked_text


class SafeStream:
    """A stream that masks secrets in what is written, and escapes characters that its encoding lacks.

    Args:
        stream: The stream that is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(masked_text(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Write standard output and error through a `SafeStream` inside the block, and tracebacks that end the process."""
    output, error = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeStream(output), SafeStream(error)
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
