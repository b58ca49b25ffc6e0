"""Tells at the end of a training of rewards that gave all completions the same value, and of replaced prompts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from rld.rollout.counts import differ_in_groups
from rld.rollout.record import RolloutRecord, RolloutTotals
from rld.types import Event

_MIN_GROUPS = 4
"""Groups from which on a reward that never differed is told."""


def count_groups(totals: RolloutTotals, names: list[str], record: RolloutRecord) -> None:
    """Add the groups of a rollout that are no gold groups, and for each reward those in which it differed.

    Args:
        totals: The counts so far.
        names: The rewards' names.
        record: The rollout's, with its rewards.
    """
    differs_GR = differ_in_groups(record.compared_rewards_AR, record.group_size)
    totals.groups += len(differs_GR) - len(record.gold_groups)
    for name, number in zip(names, differs_GR.sum(0).tolist(), strict=True):
        totals.groups_with_differences[name] = totals.groups_with_differences.get(name, 0) + number


class RolloutEvents(TrainerCallback):
    """Adds events at the end of a training: rewards that told no completions apart, and prompts that were replaced.

    Args:
        trainer: The trainer, with its events and the counts of its rollouts.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        totals: RolloutTotals = self.trainer.totals
        if "policy" in self.trainer.runtime.signals:
            pairs = zip(self.trainer.reward_func_names, self.trainer.reward_weights.tolist(), strict=True)
            self.trainer.events += _equal_rewards(totals, [name for name, weight in pairs if weight], state.global_step)
        self.trainer.events += _replaced_prompts(totals, args.refill, state.global_step)


def _equal_rewards(totals: RolloutTotals, names: Sequence[str], step: int) -> list[Event]:
    """Return an event, and warn, for each paid reward that told no completions of a prompt apart."""
    if totals.groups < _MIN_GROUPS:
        return []
    measured = f"the completions of a prompt got the same value in all {totals.groups} groups"
    rule = "there is nothing to reinforce where they do"
    equal = [name for name in names if not totals.groups_with_differences.get(name, 0)]
    for name in equal:
        warnings.warn(f"reward '{name}' taught nothing: {measured}", stacklevel=3)
    return [Event(step, "equal rewards", "all skills", name, measured, rule) for name in equal]


def _replaced_prompts(totals: RolloutTotals, refill: int, step: int) -> list[Event]:
    """Return an event for each skill of which prompts were replaced."""
    measured = f"all completions of each got the same reward; {totals.groups} prompts were trained on"
    rule = f"each is replaced {refill} times at most; {totals.groups_without_difference} stayed all the same"
    return [
        Event(step, "prompts replaced", skill, f"{number} prompts", measured, rule)
        for skill, number in totals.groups_replaced.items()
    ]
