"""Draws a run's report while the run runs, and spends little of its time on that."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rld.errors import RldError
from rld.reporting.report import write_report
from rld.utils.messages import one_line, tell
from rld.utils.os_errors import describe_os_error

LARGEST_SHARE = 0.01
"""Share of a run's time that drawing may take."""

_USUAL_SECONDS = 0.5
"""What a page with two dozen charts of some hundred updates takes on a busy CPU; the least that is expected of a page,
for the first one of a run is nearly empty."""

_GROWTH = 1.5
"""How many times as long as the page before a page may take, because the log has grown or the machine is busy."""


class LivePage:
    """Draws `report.html` again and again, as long as all of that takes at most a hundredth of the time.

    The first page is always drawn. Nothing that goes wrong in drawing ends the run: it is told once.

    Args:
        run: The run's folder.
        clock: Returns seconds.
    """

    def __init__(self, run: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self._clock = run, clock
        self._start, self._messages = clock(), set[str]()
        self._expected_seconds: float | None = None
        """Seconds that the next page is expected to take; None before the first."""
        self.seconds = 0.0
        """What drawing has taken so far."""

    def draw(self) -> None:
        """Draw the page, unless that would take too much of the run's time."""
        limit = LARGEST_SHARE * (self._clock() - self._start)
        if self._expected_seconds is None or self.seconds + self._expected_seconds <= limit:
            self._draw(", and the run goes on without it")

    def draw_last(self) -> None:
        """Draw the page of a run that ends, however long that takes."""
        self._draw("")

    def _draw(self, consequence: str) -> None:
        """Draw the page, or tell what prevents that, with its consequence."""
        begin = self._clock()
        try:
            write_report(self.run)
        except Exception as error:
            self._tell(error, consequence)
        seconds = self._clock() - begin
        self.seconds += seconds
        self._expected_seconds = max(_GROWTH * seconds, _USUAL_SECONDS)

    def _tell(self, error: Exception, consequence: str) -> None:
        text = one_line(error)
        if isinstance(error, OSError):
            text = describe_os_error(error)
        elif not isinstance(error, RldError):
            text = f"{type(error).__name__}: {text}"
        if text not in self._messages:
            self._messages.add(text)
            tell(f"the report could not be drawn{consequence}: {text}")
