"""Where the time of an update goes."""

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
    """Adds up the seconds of each part of an update; a part within a part counts for itself alone."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []
        self._inside = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within as that of a part."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """Count what comes until `end` as a part."""
        self._wait()
        self._open.append((name, time.perf_counter()))
        self._inside.append(0.0)

    def end(self) -> None:
        """End the part that began last."""
        self._wait()
        name, began = self._open.pop()
        whole = time.perf_counter() - began
        self._seconds[name] = self._seconds.get(name, 0.0) + whole - self._inside.pop()
        self._inside[-1] += whole

    def _wait(self) -> None:
        """Wait for an accelerator: its work counts where it was asked for, not where its result is."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, as metrics `time/<part>`; 0 for one that rested."""
        taken = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return taken


class OptimizerTime(TrainerCallback):
    """Ends the part that began after the last backward pass of an update: clipping, and the optimizer's step."""

    def __init__(self, stopwatch: PhaseTimer) -> None:
        self.stopwatch = stopwatch

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stopwatch.end()


class Timed(Protocol):
    """What has a stopwatch."""

    stopwatch: PhaseTimer


T = TypeVar("T", bound=Timed)


def timed(name: str) -> Callable[[Callable[Concatenate[T, P], R]], Callable[Concatenate[T, P], R]]:
    """Count the time of a method as that of a part."""

    def decorate(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
        @functools.wraps(method)
        def wrapper(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
            with self.stopwatch.part(name):
                return method(self, *args, **kwargs)

        return wrapper

    return decorate
