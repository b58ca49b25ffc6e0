"""Handles signals that request a run to stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Records the signals that requested this process to stop.

    Args:
        message: Printed to stderr by the main process at each request.
        second_raises: Whether a second request raises `KeyboardInterrupt` at once.
    """

    def __init__(self, message: str, second_raises: bool = True) -> None:
        self.message, self.second_raises = message, second_raises
        self.signals: list[int] = []

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)
        if self.second_raises and len(self.signals) > 1:
            raise KeyboardInterrupt
        if os.environ.get("RANK", "0") == "0":
            print(f"rld: {self.message}", file=sys.stderr)

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
