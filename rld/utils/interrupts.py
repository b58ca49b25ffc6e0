"""Stops a run: on signals that request it, and when the process that started it has ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from rld.utils.messages import tell

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, `kill`, and a terminal that was closed."""

_SECONDS_PER_LOOK = 0.5
"""How often a process looks whether its parent still lives."""

_SECONDS_TO_STOP = 20.0
"""How long a process that was requested to stop, because its parent has ended, may go on."""

_SECONDS_TO_WAIT = 7.0
"""How long a wait may go on in a process that was requested to stop; with what follows, it has ended in 10 seconds."""

_SECONDS_PER_TRY = 0.7
"""Time between two interruptions of a wait that does not end."""

_MAX_TRIES = 3
"""How often a wait is interrupted before the process is ended from outside of it."""


class StopRequested(KeyboardInterrupt):
    """A request to stop that ends the run at once: a second one, or one while the process waits in vain."""


class _Span:
    """A part of a run: the block of a `with` statement. Only those of the main thread are interrupted."""

    _open: list[_Span] = []
    """Of the main thread, the innermost last."""
    _request: StopRequest | None = None
    """The latest request to stop that was made in the block of `stop_on_signals`."""

    def __init__(self) -> None:
        self.start, self.num_tries = time.monotonic(), 0
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:
            _Span._open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            _Span._open.remove(self)

    @staticmethod
    def innermost() -> _Span | None:
        """Return the span in which the main thread is."""
        return _Span._open[-1] if _Span._open else None


class Waiting(_Span):
    """Something that may never end, such as a server's answer or a user's code, and whose loss costs nothing.

    A request to stop lets it go on for some seconds, or not at all once it has failed; then `StopRequested` is raised
    in it. A process whose code catches that exception, or looks at no signals, is ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self._has_failed = False

    def fail(self) -> None:
        """Note that what is waited for has failed, and will be tried again.

        Raises:
            StopRequested: the process was requested to stop.
        """
        self._has_failed = True
        if _Span._request is not None:
            raise StopRequested

    def receive_request(self) -> None:
        """Let the wait end, because the process was requested to stop."""
        if self._has_failed:
            raise StopRequested


class Finishing(_Span):
    """Updates of a model, which take a while and are not lost: a request to stop lets them go on to a checkpoint.

    A `Waiting` inside of it is ended.
    """


class StopRequest:
    """Records the signals that requested this process to stop.

    Args:
        message: Printed to stderr by the main process at each request.
        second_raises: Whether a second request raises `StopRequested` at once, and a first one ends waits.
    """

    def __init__(self, message: str, second_raises: bool = True) -> None:
        self.message, self.second_raises = message, second_raises
        self.signals: list[int] = []
        self._lock = threading.Lock()
        """Held while a wait is interrupted, so that no interruption arrives once `end` has returned."""
        self._wait_to_end: Waiting | None = None
        """The wait that the signal on its way is to end; None where that signal is a request."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        wait, self._wait_to_end = self._wait_to_end, None
        if wait is not None:
            # It may have ended since the signal was sent. In `__exit__`, an exception would leave its span open.
            is_ending = frame is not None and frame.f_code is _Span.__exit__.__code__
            if wait is _Span.innermost() and not is_ending:
                raise StopRequested
            return
        if self.signals and signal.Signals(number).name == "SIGHUP":  # a closed terminal sends one, its shell another
            return
        self.signals.append(number)
        if self.second_raises and len(self.signals) > 1:
            raise StopRequested
        if self.second_raises:
            _Span._request = self
            if hasattr(signal, "pthread_kill"):
                threading.Thread(target=self._end_waits, args=(number, time.monotonic()), daemon=True).start()
            span = _Span.innermost()
            if isinstance(span, Waiting):
                span.receive_request()
        tell(self.message)

    def is_made(self) -> bool:
        """Return whether a stop was requested."""
        return bool(self.signals)

    def end(self) -> None:
        """Interrupt no more waits."""
        with self._lock:
            _Span._request = None

    def _end_waits(self, number: int, requested: float) -> None:
        """Interrupt the main thread in waits that last too long, by the same signal again; run in a thread."""
        while True:
            with self._lock:
                if _Span._request is not self:
                    return
                span = _Span.innermost()
                seconds = _SECONDS_PER_TRY / 10
                if isinstance(span, Waiting) and time.monotonic() > max(requested, span.start) + _SECONDS_TO_WAIT:
                    self._interrupt(span, number)
                    seconds = _SECONDS_PER_TRY
            time.sleep(seconds)

    def _interrupt(self, wait: Waiting, number: int) -> None:
        """Interrupt the main thread in a wait; end the process where that was tried in vain."""
        if wait.num_tries == _MAX_TRIES:
            tell("what it waits for can't be interrupted, so this process ends here")
            sys.stdout.flush()
            os._exit(128 + number)
        wait.num_tries += 1
        self._wait_to_end = wait
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, number)


@contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[StopRequest]:
    """Handle the signals that request a stop with `stop` inside the block; skip signals that the platform lacks.

    An ignored SIGHUP stays ignored, so that a run under nohup continues when its terminal closes.
    """
    numbers = [number for name in _SIGNALS if (number := getattr(signal, name, None)) is not None]
    numbers = [n for n in numbers if signal.Signals(n).name != "SIGHUP" or signal.getsignal(n) is not signal.SIG_IGN]
    handlers = [signal.signal(number, stop) for number in numbers]
    try:
        yield stop
    finally:
        stop.end()
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
