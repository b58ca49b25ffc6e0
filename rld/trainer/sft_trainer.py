"""TRL's trainer for supervised fine-tuning, which stops at numbers that are not finite."""

from __future__ import annotations

import trl

from rld.trainer.finite_updates import FiniteUpdates


class SFTTrainer(FiniteUpdates, trl.SFTTrainer):
    """`trl.SFTTrainer` with the checks of `FiniteUpdates`; its arguments mean the same."""
