"""What watches over a stage while it trains: stopping when asked, complete checkpoints, the controller's events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from rld import checkpoint
from rld.progress import RunLog
from rld.trainer import RLDTrainer


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
            checkpoint.write_json(folder / checkpoint.STATE, {"version": checkpoint.VERSION})
