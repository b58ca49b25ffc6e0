"""TRL's trainer for supervised fine-tuning, which stops at numbers that are not finite and leaves whole checkpoints."""

from __future__ import annotations

from pathlib import Path

import trl

from rld.trainer import checkpoints
from rld.trainer.finite_updates import FiniteUpdates
from rld.trainer.resumable import ResumableTrainer
from rld.trainer.training_progress import TrainingProgress
from rld.trainer.whole_checkpoints import WholeCheckpoints


class SFTTrainer(FiniteUpdates, ResumableTrainer, TrainingProgress, trl.SFTTrainer, WholeCheckpoints):
    """`trl.SFTTrainer` with the checks of `FiniteUpdates` and complete checkpoints; its arguments mean the same."""

    def _complete_checkpoint(self, folder: Path) -> None:
        checkpoints.complete(folder, {"skipped": self.num_skipped}, self.accelerator, is_writer=self.args.should_save)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.num_skipped = checkpoints.require_version(Path(checkpoint))["skipped"]
        super()._load_optimizer_and_scheduler(checkpoint)
