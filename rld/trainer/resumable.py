"""Training that is resumed makes no update too many, and saves and logs as often as its arguments say now."""

from __future__ import annotations

from typing import Any

from transformers import Trainer


class ResumableTrainer(Trainer):
    """A trainer that makes no update once it has made all of them, or once a callback ended it when it began.

    The Hugging Face trainer looks for its end only after an update.
    """

    def _init_training_state(self, max_steps: int, *args: Any, **options: Any) -> Any:
        progress = super()._init_training_state(max_steps, *args, **options)
        self.state.compute_steps(self.args, max_steps)  # the checkpoint has how often it saved before
        return progress

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)  # type: ignore[no-untyped-call]
