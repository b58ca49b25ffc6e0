"""Training that is resumed after its last update ends at once, instead of making one update more."""

from __future__ import annotations

from typing import Any

from transformers import Trainer


class ResumableTrainer(Trainer):
    """A trainer that makes no update once it has made all of them, or once a callback ended it when it began.

    The Hugging Face trainer looks for its end only after an update.
    """

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)  # type: ignore[no-untyped-call]
