"""What the terminal shows while a stage trains."""

from __future__ import annotations

import atexit
import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Column, Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rld.reporting.metric_names import logged_metrics

_SHOWN = {
    "weights": re.compile(r"weight/([^/]+)"),
    "teachers": re.compile(r"teacher/(.+)/weight"),
    "progress": re.compile(r"progress/(.+)"),
}

_SECONDS_PER_FRAME, _SECONDS_PER_LINE = 0.2, 10.0


class ProgressBar(TrainerCallback):
    """Show how far a stage is, what the controller decided, and what each skill has reached.

    On a terminal a display that stays in place; elsewhere a plain line every ten seconds. Both on standard error, from
    the main process only, and drawn between steps: no thread competes with the training.

    Args:
        stage: The stage's name.
        number: Which of the recipe's stages it is, from 1.
        count: How many there are.
        supervised: Whether the stage fine-tunes.
    """

    def __init__(self, stage: str, number: int, count: int, supervised: bool = False) -> None:
        self.title = f"{stage} ({number} of {count})"
        self.values: dict[str, float | None] = {}
        self._supervised, self._shows = supervised, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._shows = state.is_world_process_zero
        if not self._shows:
            return
        self._first = self._step = state.global_step
        self._total, self._said = state.max_steps, -1
        self._began, self._drawn = time.monotonic(), -math.inf
        self._console = _Console(stderr=True, highlight=False)
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # what goes to a file stays out of the display
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
        values = logged_metrics(logs or {}, self._supervised)
        if self._shows and values:
            self.values |= values
            self._tick()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._shows:
            if self._live is not None:
                self._draw(self._live.stop)
                atexit.unregister(self._live.stop)
            if self._said != self._step:
                self._draw(self._say)

    # -- drawing -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._drawn >= (_SECONDS_PER_FRAME if self._live else _SECONDS_PER_LINE):
            self._drawn = now
            self._draw(self._live.refresh if self._live else self._say)

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

    def _say(self) -> None:
        self._said = self._step
        lists = [f"{what} {_list(self._latest(what))}" for what in _SHOWN if self._latest(what)]
        print("; ".join([f"{self.title}: step {self._facts()}", *lists]), file=sys.stderr, flush=True)

    def _frame(self) -> RenderableType:
        steps = Table.grid(Column(ratio=1), Column(no_wrap=True), padding=(0, 2), expand=True)
        steps.add_row(Bar(max(self._total, 1), self._step, complete_style="cyan"), self._facts())
        frame = Table.grid(Column(no_wrap=True), Column(ratio=1, no_wrap=True), padding=(0, 2), expand=True)
        frame.add_row(Text(self.title), steps)
        for what in ("weights", "teachers"):
            if shares := self._latest(what):
                frame.add_row(what, Text(_list(shares), overflow="ellipsis"))
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
        done = self._step - self._first
        if done and self._step < self._total:
            left = (time.monotonic() - self._began) / done * (self._total - self._step)
            facts.append(f"{timedelta(seconds=round(left))} left")
        if (loss := self.values.get("loss")) is not None:
            facts.append(f"loss {loss:.4g}")
        return ", ".join(facts)

    def _latest(self, what: str) -> dict[str, float]:
        found = [(_SHOWN[what].fullmatch(key), value) for key, value in self.values.items()]
        return {match[1]: value for match, value in found if match and value is not None}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would end the program


def _list(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
