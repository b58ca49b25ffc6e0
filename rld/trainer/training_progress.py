"""Schedules that follow how much of a training is done: the share of its steps, or of a budget that may end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, Trainer


class TrainingProgress(Trainer):
    """A trainer whose learning rate follows a budget, if it has one, as well as its steps.

    Attributes:
        budget_used: Returns the share of the budget that is used, from 0; the same on every process. None: no budget.
    """

    budget_used: Callable[[], float] | None = None

    def progress(self, step: int) -> float:
        """Return how much of the training is done after `step` steps, from 0 to 1."""
        share = step / max(self.state.max_steps, 1)
        return min(share if self.budget_used is None else max(share, self.budget_used()), 1.0)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        has_end = self.args.lr_scheduler_type != SchedulerType.INVERSE_SQRT
        if self.budget_used is not None and isinstance(scheduler, LambdaLR) and has_end:
            self._follow_progress(scheduler, num_training_steps)
        return scheduler

    def _follow_progress(self, scheduler: LambdaLR, num_steps: int) -> None:
        """Have a schedule decay by progress instead of steps; it still warms up by steps.

        While it warms up, the rate is at most that to which it has to decay by then.
        """
        num_warmup_steps = self.args.get_warmup_steps(num_steps)

        def by_progress(factor: Callable[[int], float]) -> Callable[[int], float]:
            def factor_at(step: int) -> float:
                position: Any = self.progress(step) * num_steps  # transformers' schedules take fractions of a step
                position = max(step, position)
                return factor(position) if step >= num_warmup_steps else min(factor(step), factor(position))

            return factor_at

        scheduler.lr_lambdas = [by_progress(factor) for factor in scheduler.lr_lambdas]
