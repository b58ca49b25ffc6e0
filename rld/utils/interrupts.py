"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Remembers a polite request to stop; the second one is not polite any more."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        from accelerate import PartialState  # takes a second to import

        if PartialState().is_main_process:
            print("rld: stopping after this step; once more stops at once", file=sys.stderr)

    def asked(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
