"""What watches over a stage while it trains: its noise, its scores, when to stop, complete checkpoints, events."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, set_seed

from rld.reporting.run_log import RunLog
from rld.trainer import checkpoints
from rld.trainer.rld_trainer import RLDTrainer
from rld.utils import files


class CommonRandomNumbers(TrainerCallback):
    """Makes an update's random numbers depend on the seed, the step and the process alone.

    So runs that differ in one option sample their completions with the same noise, update by update, and what differs
    between them comes from the option (common random numbers).
    """

    def __init__(self, seed: int, process: int) -> None:
        self.seed, self.process = seed, process

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        set_seed(random.Random(f"{self.seed}:{state.global_step}:{self.process}").getrandbits(32))


class FlopsBudget(TrainerCallback):
    """Ends a stage after the step by which it has spent its FLOPs; `spent` counts them over all processes."""

    def __init__(self, max_flops: float | None, spent: Callable[[], float]) -> None:
        self.max_flops, self.spent = max_flops, spent
        self.is_used_up = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.max_flops is not None and self.spent() >= self.max_flops:
            self.is_used_up = True
            control.should_training_stop = True
            control.should_save = False  # resumed from here, the stage would take a step too many


class PeriodicEvaluation(TrainerCallback):
    """Scores the student now and then on the held-out rows; the stage's own scores come before and after."""

    def __init__(
        self, every: int | None, score: Callable[[], Mapping[str, float]], log: RunLog, trainer: Trainer
    ) -> None:
        self.every, self.score, self.log, self.trainer = every, score, log, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0 and not control.should_training_stop:
            trainer = self.trainer
            with trainer.stopwatch.part("scoring") if isinstance(trainer, RLDTrainer) else nullcontext():
                scores = self.score()
            self.log.note({f"score/{skill}": score for skill, score in scores.items()})
            control.should_log = True


class Keeper(TrainerCallback):
    """Stops when asked to, marks checkpoints complete, and hands controller events to the log."""

    def __init__(self, interrupted: Callable[[], bool], log: RunLog, trainer: Trainer) -> None:
        self.interrupted, self.log, self.trainer = interrupted, log, trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if isinstance(self.trainer, RLDTrainer):
            self.log.events(self.trainer.events)
            self.trainer.events.clear()
        if self._asked():
            control.should_save = True
            control.should_training_stop = True

    def _asked(self) -> bool:
        """Whether any process was asked to stop: a signal may reach one alone, and all must stop at the same step."""
        asked = torch.tensor(float(self.interrupted()), device=self.trainer.accelerator.device)
        total: torch.Tensor = self.trainer.accelerator.reduce(asked, reduction="sum")
        return bool(total > 0)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # a complete checkpoint has every process's files
        if args.should_save and not isinstance(self.trainer, RLDTrainer):
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files.write_json(folder / checkpoints.STATE, {"version": checkpoints.VERSION})
