"""Training that is resumed makes no update too many, and saves and logs as often as its arguments say now."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints


class ResumableTrainer(Trainer):
    """A trainer that can be resumed at any moment from its last complete checkpoint.

    It makes no update once it has made all of them, or once a callback ended it when it began: the Hugging Face trainer
    looks for its end only after an update.
    """

    @abstractmethod
    def _complete_checkpoint(self, folder: Path) -> None:
        """Add rld's state to a checkpoint of which all else is written."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, limit = Path(self._get_output_dir(trial=trial)), self.args.save_total_limit
        self.args.save_total_limit = None  # older checkpoints are removed once this one is complete
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self._complete_checkpoint(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder), limit, best_model_checkpoint=best, use_mtime=True)

    def _init_training_state(self, max_steps: int, *args: Any, **options: Any) -> Any:
        progress = super()._init_training_state(max_steps, *args, **options)
        self.state.compute_steps(self.args, max_steps)  # the checkpoint has how often it saved before
        return progress

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)  # type: ignore[no-untyped-call]
