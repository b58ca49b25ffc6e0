"""Tells at the end of a training which rewards gave the completions of every prompt the same value."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from rld.rollout.counts import differ_in_groups
from rld.rollout.record import RolloutTotals
from rld.types import Event

_MIN_GROUPS = 4
"""Groups from which on a reward that never differed is told."""


def count_groups(totals: RolloutTotals, names: list[str], rewards_AR: Tensor, group_size: int) -> None:
    """Add the groups of a rollout, and for each reward those in which it differed.

    Args:
        totals: The counts so far.
        names: The rewards' names.
        rewards_AR: Rewards of A completions, NaN where one does not apply; groups are consecutive.
        group_size: Completions of a group.
    """
    differs_GR = differ_in_groups(rewards_AR, group_size)
    totals.groups += len(differs_GR)
    for name, number in zip(names, differs_GR.sum(0).tolist(), strict=True):
        totals.groups_with_differences[name] = totals.groups_with_differences.get(name, 0) + number


class EqualRewards(TrainerCallback):
    """Adds an event, and warns, for each paid reward that told no completions of a prompt apart.

    Args:
        trainer: The trainer, with its events and the counts of its rollouts.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        totals: RolloutTotals = self.trainer.totals
        if totals.groups < _MIN_GROUPS or "policy" not in self.trainer.runtime.signals:
            return
        for name, weight in zip(self.trainer.reward_func_names, self.trainer.reward_weights.tolist(), strict=True):
            if weight and not totals.groups_with_differences.get(name, 0):
                measured = f"the completions of a prompt got the same value in all {totals.groups} groups"
                rule = "there is nothing to reinforce where they do"
                self.trainer.events.append(
                    Event(state.global_step, "equal rewards", "all skills", name, measured, rule)
                )
                warnings.warn(f"reward '{name}' taught nothing: {measured}", stacklevel=2)
