"""Seconds that each phase of an update takes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from transformers import TrainerCallback

P = ParamSpec("P")

R = TypeVar("R")


class PhaseTimer:
    """Adds up the seconds of each phase of an update; a phase inside another one does not count for the outer one."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []
        self._seconds_inside = [0.0]
        """For each open phase, the outermost first, the seconds of the finished phases inside it."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Make a context whose time counts for a phase."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """Begin a phase."""
        self._wait()
        self._open.append((name, time.perf_counter()))
        self._seconds_inside.append(0.0)

    def end(self) -> None:
        """End the phase that began last."""
        self._wait()
        name, start = self._open.pop()
        seconds = time.perf_counter() - start
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds - self._seconds_inside.pop()
        self._seconds_inside[-1] += seconds

    def _wait(self) -> None:
        """Wait for an accelerator, so that its work counts for the phase that started it."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, as metrics `time/<phase>`.

        A phase that did not run since is 0, because the log averages over updates.
        """
        metrics = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return metrics


class OptimizerTime(TrainerCallback):
    """Ends the phase that begins after the last backward pass of an update: clipping, and the optimiser's step."""

    def __init__(self, timer: PhaseTimer) -> None:
        self.timer = timer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.timer.end()


class Timed(Protocol):
    """An object with a timer."""

    timer: PhaseTimer


T = TypeVar("T", bound=Timed)


def timed(name: str) -> Callable[[Callable[Concatenate[T, P], R]], Callable[Concatenate[T, P], R]]:
    """Return a decorator of methods whose time counts for a phase."""

    def decorate(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
        @functools.wraps(method)
        def wrapper(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
            with self.timer.part(name):
                return method(self, *args, **kwargs)

        return wrapper

    return decorate
