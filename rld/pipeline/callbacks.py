"""Callbacks of a stage's training: random numbers, scores, requests to stop, events, the report."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, set_seed

from rld.pipeline.stopping import Stopping
from rld.reporting.live_page import LivePage
from rld.reporting.run_log import RunLog
from rld.trainer.finite_updates import FiniteUpdates
from rld.utils.interrupts import StopRequested, Waiting
from rld.utils.messages import tell


class CommonRandomNumbers(TrainerCallback):
    """Seeds the random number generators at each step from the seed, the step and the process (common random numbers).

    Runs that differ in one option then sample their completions with the same random numbers at each update, so the
    option causes the difference between their results.
    """

    def __init__(self, seed: int, process: int) -> None:
        self.seed, self.process = seed, process

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        set_seed(random.Random(f"{self.seed}:{state.global_step}:{self.process}").getrandbits(32))


class PeriodicEvaluation(TrainerCallback):
    """Scores the student on the held-out rows every `every` steps, besides the scores before and after the stage.

    A scoring in which the run was requested to stop ends soon, without scores.
    """

    def __init__(
        self, interval: int | None, score: Callable[[], Mapping[str, float]], log: RunLog, stopping: Stopping
    ) -> None:
        self.interval, self.score, self.log, self.stopping = interval, score, log, stopping

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.interval is not None and state.global_step % self.interval == 0 and not control.should_training_stop:
            try:
                with Waiting():
                    scores = self.score()
            except StopRequested:
                if args.world_size > 1:  # processes whose weights are shared score together
                    raise
                tell(f"the scores after step {state.global_step} are left out")
                return
            self.log.note({f"score/{skill}": score for skill, score in scores.items()})
            self.stopping.receive_scores(scores, state, control)
            control.should_log = True


class StopOnRequest(TrainerCallback):
    """Saves a checkpoint and stops after the step in which the user asked to stop.

    Args:
        is_requested: Returns whether this process received the request. A signal may reach only one process, and all
            processes must stop at the same step.
    """

    def __init__(self, is_requested: Callable[[], bool], accelerator: Accelerator) -> None:
        self.is_requested, self.accelerator = is_requested, accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        is_requested = torch.tensor(float(self.is_requested()), device=self.accelerator.device)
        num_requests: torch.Tensor = self.accelerator.reduce(is_requested, reduction="sum")
        if num_requests > 0:
            control.should_save = True
            control.should_training_stop = True


class FolderWatch(TrainerCallback):
    """Stops a run whose folder was removed; later writes would make a new one, without what was there.

    Raises:
        FileNotFoundError: after a step, the run's recipe is gone.
    """

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and not self.recipe.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.recipe))


class PageAtCheckpoints(TrainerCallback):
    """Has the main process draw the run's report after each checkpoint."""

    def __init__(self, page: LivePage) -> None:
        self.page = page

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.page.draw()


class EventLog(TrainerCallback):
    """Moves a trainer's events to the log after each step, and at the end."""

    def __init__(self, trainer: FiniteUpdates, log: RunLog) -> None:
        self.trainer, self.log = trainer, log

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write()

    def _write(self) -> None:
        self.log.events(self.trainer.events)
        self.trainer.events.clear()
