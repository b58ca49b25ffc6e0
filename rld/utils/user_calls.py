"""Calls of a user's code, which may neither end the process nor run for ever.

The limit of time works through the alarm signal, so it holds in the main thread, on systems that have that signal. It
interrupts Python code, `time.sleep`, waiting for a lock, a process or a network, and regular expressions. It does not
interrupt compiled code that checks for no signals, code in other threads, or code that sets an alarm of its own.
"""

from __future__ import annotations

import contextlib
import linecache
import signal
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rld.errors import UsageError
from rld.utils.interrupts import StopRequested, Waiting

IMPORT_SECONDS = 600.0
"""Seconds that the import of a user's file may take."""

CALL_SECONDS = 60.0
"""Seconds that one call of a generator or of a curriculum's method may take."""

REWARD_SECONDS = 600.0
"""Seconds that one call of a reward may take, if nothing else is set."""

_AGAIN_SECONDS = 1.0
"""Seconds after which code that catches the exception of the time limit is interrupted again."""


_LIBRARIES = (Path(__file__).resolve().parents[1], *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")))
"""Folders of code that is not the user's: rld, Python and what is installed."""


class UserCodeStopped(Exception):
    """A user's code tried to end the process, or was interrupted; the message completes a sentence about the code."""


class UserCodeTimeout(UserCodeStopped):
    """A user's code did not return in time."""


class _LimitReached(BaseException):
    """Raised in code that has reached its limit of time; not an `Exception`, which the code may catch.

    Args:
        limit: What stands for the limit: a limit may be inside another one.
    """

    def __init__(self, limit: object) -> None:
        super().__init__()
        self.limit = limit


@contextmanager
def user_code(seconds: float) -> Iterator[None]:
    """Run a user's code in the block, for at most `seconds` seconds.

    Raises:
        UserCodeStopped: it raised SystemExit, KeyboardInterrupt or another exception that is no `Exception`, or it did
            not return in time. Ctrl-C and signals that stop a run are raised as they are.
    """
    limit = object()
    try:
        with Waiting(), _time_limit(seconds, limit):
            yield
    except _LimitReached as error:
        if error.limit is not limit:  # that of a caller
            raise
        sentence = f"did not return within {seconds:g} seconds"
        raise UserCodeTimeout(sentence).with_traceback(error.__traceback__) from None
    except Exception:
        raise
    except BaseException as error:
        action_of_code = _sentence(error)
        if action_of_code is None:
            raise
        raise UserCodeStopped(action_of_code).with_traceback(error.__traceback__) from None


@contextmanager
def exit_refused() -> Iterator[None]:
    """Run a command in the block; code in it that would end the process without a word is an error.

    Raises:
        UsageError: it raised SystemExit.
    """
    try:
        yield
    except SystemExit as error:
        raise UsageError(f"something that the command ran {description(error)} before it was done") from error


def stopped_sentence(error: SystemExit) -> str:
    """Return what code did that raised SystemExit, as the end of a sentence about it."""
    return f"called sys.exit({'' if error.code is None else repr(error.code)})"


def action(error: BaseException) -> str:
    """Return what a user's code did that ended with an exception, as the end of a sentence about it."""
    if isinstance(error, SystemExit):
        return stopped_sentence(error)
    return str(error) if isinstance(error, UserCodeStopped) else f"raised {type(error).__name__}: {error}"


def description(error: BaseException) -> str:
    """Return what a user's code did that ended with an exception, and its file and line where it did.

    Where a library raised that the code called, the line is that of the call.
    """
    all_frames = frames(error)
    frame = ([frame for frame in all_frames if not _is_library(frame.filename)] or all_frames)[-1]
    return f"{action(error)} ({frame.filename}:{frame.lineno})"


def _is_library(filename: str) -> bool:
    return filename.startswith("<") or any(folder in Path(filename).parents for folder in _LIBRARIES)


def frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames from the caller of `user_code` to where the code raised an exception, or was interrupted."""
    between = (__file__, contextlib.__file__)
    return [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in between]


def _sentence(error: BaseException) -> str | None:
    """Return what the user's code did, None for an exception that is not the code's own."""
    if isinstance(error, SystemExit):
        return stopped_sentence(error)
    if isinstance(error, StopRequested | GeneratorExit):
        return None
    if isinstance(error, KeyboardInterrupt) and not _is_raised_by_statement(error):
        return None  # Ctrl-C, which arrives at any line
    return f"raised {type(error).__name__}{': ' if str(error) else ''}{error}"


def _is_raised_by_statement(error: BaseException) -> bool:
    frame = frames(error)[-1]
    return linecache.getline(frame.filename, frame.lineno or 0).lstrip().startswith("raise")


@contextmanager
def _time_limit(seconds: float, limit: object) -> Iterator[None]:
    """Raise `_LimitReached(limit)` in the block after so many seconds; alarms that were set before still come."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    start = time.monotonic()

    def interrupt(number: int, frame: Any) -> None:
        if time.monotonic() - start >= seconds:
            raise _LimitReached(limit)
        if callable(previous):  # the alarm of somebody else
            previous(number, frame)

    previous = signal.signal(signal.SIGALRM, interrupt)
    remaining, interval = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, remaining or seconds), _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), 1e-3), interval)
