"""Short messages for the user, beside a command's output."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rld.utils.control_characters import visible

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Environment variables with the number of a process, as torchrun and MPI set them and Accelerate reads them."""


def tell(text: str) -> None:
    """Print a line to stderr; of a distributed run, the main process alone prints it."""
    if is_main_process():
        tell_of_this_process(text)


def tell_of_this_process(text: str) -> None:
    """Print a line to stderr, also in a process of a distributed run that is not the main one."""
    print(f"rld: {visible(text)}", file=sys.stderr, flush=True)


def one_line(value: object) -> str:
    """Return a text, or that of an error, without line breaks and with single blanks."""
    return " ".join(str(value).split())


def is_main_process() -> bool:
    """Tell whether this is the process of a distributed run that prints messages."""
    ranks = (os.environ[name] for name in _RANKS if os.environ.get(name, "").isdecimal())
    return int(next(ranks, "0")) == 0


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show a `UserWarning` as one line with its text, without the place in the code that raised it."""
    default = warnings.formatwarning

    def line_of(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserWarning):
            return f"warning: {visible(str(message))}\n"
        return visible(default(message, category, filename, lineno, line))

    warnings.formatwarning = line_of
    try:
        yield
    finally:
        warnings.formatwarning = default
