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


class StopRequested(KeyboardInterrupt):
    """A second request to stop, which ends the run at once."""


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
