"""Chooses the completions of a rollout that rewards are asked about.

A gold group is as many prompts as a group has completions, each with its gold answer alone. No loss reads a reward
there, and a sandbox or a judge would take its time, or money, for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from rld.rollout.feedback import log_nothing
from rld.rollout.record import RolloutRecord
from rld.rollout.rewards import is_async, rows_of


@contextmanager
def without_gold_groups(trainer: Any, record: RolloutRecord | None) -> Iterator[None]:
    """Let the block ask a trainer's rewards about the completions of this process that are not of gold groups.

    Completions of gold groups get 0. Where this process has no others, rewards are asked about its first group, and
    what they log with `log_metric` is dropped: TRL's table of completions needs an entry per completion in each column
    that a reward has logged before, and a reward may wait for that of another process. A reward model (`nn.Module`),
    which TRL runs by itself, reads all completions.

    Args:
        trainer: Has `reward_funcs`, which are others within the block.
        record: The rollout. None: it has no gold groups.
    """
    rewards = trainer.reward_funcs
    if record is not None and record.gold_groups:
        num_rows = len(record.rows)
        rows = (~record.is_gold_prompt_B).nonzero().squeeze(1).tolist()
        part = _Rows(rows or list(range(min(record.group_size, num_rows))), num_rows, is_counted=bool(rows))
        trainer.reward_funcs = [reward if isinstance(reward, nn.Module) else part.asking(reward) for reward in rewards]
    try:
        yield
    finally:
        trainer.reward_funcs = rewards


class _Rows:
    """Some completions of a process.

    Args:
        rows: Their indices.
        num_rows: Completions of the process.
        is_counted: Whether what rewards log with `log_metric` is of sampled completions.
    """

    def __init__(self, rows: Sequence[int], num_rows: int, *, is_counted: bool) -> None:
        self._rows, self._num_rows, self._is_counted = rows, num_rows, is_counted

    def asking(self, reward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a reward of all completions that asks `reward` about these, and gives 0 to the others."""

        def call(**batch: Any) -> Any:
            logged: dict[str, list[Any]] = {}
            return self._finished(reward(**self._part(batch, logged)), batch, logged)

        async def call_async(**batch: Any) -> Any:
            logged: dict[str, list[Any]] = {}
            return self._finished(await reward(**self._part(batch, logged)), batch, logged)

        return call_async if is_async(reward) else call

    def _part(self, batch: dict[str, Any], logged: dict[str, list[Any]]) -> dict[str, Any]:
        """Return a batch of these completions; what `log_extra` gets is collected by column, as TRL does."""
        part = rows_of(batch, self._rows)
        part["log_extra"] = lambda column, values: logged.setdefault(column, []).extend(values)
        return part if self._is_counted else part | {"log_metric": log_nothing}

    def _finished(self, values: Any, batch: dict[str, Any], logged: dict[str, list[Any]]) -> Any:
        """Return the rewards of all completions, after their columns have been logged."""
        for column, entries in logged.items():
            batch["log_extra"](column, self._spread(entries, None))
        return self._spread(values, 0.0)

    def _spread(self, values: Any, rest: Any) -> Any:
        """Return a value for each completion; one that is not asked about gets `rest`.

        Anything but one value for each completion that is asked about stays as it is, for TRL to refuse.
        """
        if not isinstance(values, list | tuple) or len(values) != len(self._rows):
            return values
        spread = [rest] * self._num_rows
        for i, value in zip(self._rows, values, strict=True):
            spread[i] = value
        return spread
