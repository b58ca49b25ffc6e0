"""Shows in the terminal how a stage proceeds."""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Column, Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rld.reporting.metric_names import find_metric, logged_metrics
from rld.utils.console import SafeConsole
from rld.utils.control_characters import visible

_LISTS = {
    "weights": ("weight/<signal>", "weight/reference"),
    "teachers": ("teacher/<teacher>/weight",),
    "progress": ("progress/<skill>",),
}
"""The lists that are shown, and the patterns of their metrics."""

_SECONDS_PER_FRAME = 0.2
"""On a terminal."""

_SECONDS_PER_LINE = 10.0
"""Elsewhere."""


class ProgressBar(TrainerCallback):
    """Shows the step, the remaining time, the weights that the controller decided, and the success rate of each skill.

    On a terminal the display stays in place; elsewhere a line of text is printed every ten seconds. Both go to standard
    error, from the main process only. They are drawn between steps, without a thread of their own.

    Args:
        stage: The stage's name.
        number: The stage's number in the recipe, from 1.
        count: The number of stages.
        supervised: Whether the stage fine-tunes.
    """

    def __init__(self, stage: str, number: int, count: int, supervised: bool = False) -> None:
        self.title = f"{stage} ({number} of {count})"
        self.values: dict[str, float | None] = {}
        self._is_supervised, self._shows = supervised, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._shows = state.is_world_process_zero
        if not self._shows:
            return
        self._first = self._step = state.global_step
        self._total, self._printed_step = state.max_steps, -1
        self._start_time, self._draw_time = time.monotonic(), -math.inf
        self._console = _Console(stderr=True, highlight=False)
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # output that goes to a file is not part of the display
                get_renderable=self._frame,
            )
            atexit.register(self._live.stop)  # an exception skips on_train_end, and the cursor is hidden
            self._draw(self._live.start)
        self._tick()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._shows:
            self._step = state.global_step
            if not control.should_log:
                self._tick()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        values = logged_metrics(logs or {}, self._is_supervised)
        if self._shows and values:
            self.values |= values
            self._tick()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._shows:
            if self._live is not None:
                self._draw(self._live.stop)
                atexit.unregister(self._live.stop)
            if self._printed_step != self._step:
                self._draw(self._print_line)

    # -- drawing -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._draw_time >= (_SECONDS_PER_FRAME if self._live else _SECONDS_PER_LINE):
            self._draw_time = now
            self._draw(self._live.refresh if self._live else self._print_line)

    def _draw(self, draw: Callable[[], None]) -> None:
        if not self._shows:
            return
        try:
            draw()
        except OSError:  # the terminal is gone, which must not end a night's training
            self._shows = False
            if self._live is not None:
                with contextlib.suppress(OSError):
                    self._live.stop()

    def _print_line(self) -> None:
        self._printed_step = self._step
        lists = [f"{title} {_list(self._latest(title))}" for title in _LISTS if self._latest(title)]
        line = "; ".join([f"{self.title}: step {self._facts()}", *lists])
        print(visible(line), file=sys.stderr, flush=True)

    def _frame(self) -> RenderableType:
        steps = Table.grid(Column(ratio=1), Column(no_wrap=True), padding=(0, 2), expand=True)
        steps.add_row(Bar(max(self._total, 1), self._step, complete_style="cyan"), self._facts())
        frame = Table.grid(Column(no_wrap=True), Column(ratio=1, no_wrap=True), padding=(0, 2), expand=True)
        frame.add_row(Text(self.title), steps)
        for title in ("weights", "teachers"):
            if shares := self._latest(title):
                frame.add_row(title, Text(_list(shares), overflow="ellipsis"))
        skills = list(self._latest("progress").items())
        room = max(self._console.height - frame.row_count - 2, 1)
        for skill, share in skills[:room]:
            bar = Table.grid(padding=(0, 1))
            bar.add_row(Bar(1.0, share, width=20, complete_style="green"), f"{share:.2f}")
            frame.add_row(Text(skill), bar)
        if len(skills) > room:
            frame.add_row("", f"and {len(skills) - room} more skills")
        return frame

    def _facts(self) -> str:
        facts = [f"{self._step}/{self._total}"]
        num_steps = self._step - self._first
        if num_steps and self._step < self._total:
            seconds_left = (time.monotonic() - self._start_time) / num_steps * (self._total - self._step)
            facts.append(f"{timedelta(seconds=round(seconds_left))} left")
        if (loss := self.values.get("loss")) is not None:
            facts.append(f"loss {loss:.4g}")
        return ", ".join(facts)

    def _latest(self, title: str) -> dict[str, float]:
        """Return the latest values of a list's metrics, by the name of the signal, teacher or skill."""
        latest = {}
        for key, value in self.values.items():
            listed = find_metric(key)
            if listed is not None and listed[0].pattern in _LISTS[title] and value is not None:
                latest[next(iter(listed[1].values()), key.rpartition("/")[2])] = value
        return latest


class _Console(SafeConsole):
    def on_broken_pipe(self) -> None:
        raise  # rich would end the program


def _list(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
