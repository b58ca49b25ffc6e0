"""Stops a run: on signals that request it, and when the process that started it has ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from rld.utils.messages import tell

_SECONDS_PER_LOOK = 0.5
"""How often a process looks whether its parent still lives."""

_SECONDS_TO_STOP = 20.0
"""How long a process that was requested to stop, because its parent has ended, may go on."""


_SECONDS_TO_WAIT = 10.0
"""How long a process that was requested to stop may wait for an answer from elsewhere."""


class StopRequested(KeyboardInterrupt):
    """A request to stop that ends the run at once: a second one, or one while the process waits in vain."""


class Waiting:
    """A wait for something elsewhere, such as a server's answer; use it as a context manager in the main thread.

    A request to stop lets the wait go on for ten seconds, or not at all once it has failed; then `StopRequested` is
    raised in it.
    """

    _latest: Waiting | None = None
    """The wait in progress."""

    def __init__(self) -> None:
        self._has_failed = self._is_to_end = False

    def __enter__(self) -> Waiting:
        Waiting._latest = self
        return self

    def __exit__(self, *_: object) -> None:
        Waiting._latest = None

    def fail(self) -> None:
        """Note that what is waited for has failed, and will be tried again.

        Raises:
            StopRequested: the process was requested to stop.
        """
        self._has_failed = True
        if self._is_to_end:
            raise StopRequested

    def end_soon(self) -> None:
        """Let the wait end, because the process was requested to stop."""
        self._is_to_end = True
        if self._has_failed:
            raise StopRequested
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, _end_wait)
            signal.setitimer(signal.ITIMER_REAL, _SECONDS_TO_WAIT)

    @classmethod
    def latest(cls) -> Waiting | None:
        """Return the wait in progress."""
        return cls._latest


def _end_wait(_number: int, _frame: FrameType | None) -> None:
    waiting = Waiting.latest()
    if waiting is not None:
        raise StopRequested


class StopRequest:
    """Records the signals that requested this process to stop.

    Args:
        message: Printed to stderr by the main process at each request.
        second_raises: Whether a second request raises `StopRequested` at once.
    """

    def __init__(self, message: str, second_raises: bool = True) -> None:
        self.message, self.second_raises = message, second_raises
        self.signals: list[int] = []

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.second_raises and len(self.signals) > 1:
            raise StopRequested
        waiting = Waiting.latest()
        if waiting is not None and self.second_raises:
            waiting.end_soon()
        tell(self.message)

    def is_made(self) -> bool:
        """Return whether a stop was requested."""
        return bool(self.signals)


@contextmanager
def stop_on_signals(stop: StopRequest, names: Sequence[str] = ("SIGINT", "SIGTERM")) -> Iterator[StopRequest]:
    """Handle the signals called `names` with `stop` inside the block; skip signals that the platform lacks.

    An ignored SIGHUP stays ignored, so that a run under nohup continues when its terminal closes.
    """
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    numbers = [n for n in numbers if signal.Signals(n).name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]
    handlers = [signal.signal(number, stop) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Stop this process when the one that started it has ended, even if that one was killed.

    It gets SIGTERM, so that a run writes a checkpoint, and 20 seconds later SIGKILL.
    """
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent_id: int) -> None:
    parent = multiprocessing.parent_process()  # not the server that forked this process, which lives as long as this
    while os.getppid() == parent_id if parent is None else parent.is_alive():
        time.sleep(_SECONDS_PER_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_STOP)
    os.kill(os.getpid(), signal.SIGKILL)
