"""Asks rewards about the sampled completions of a rollout alone.

Where a prompt has nothing but its gold answer, no loss reads a reward, and a sandbox or a judge would take its time, or
money, for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from rld.rollout.record import RolloutRecord
from rld.rollout.rewards import is_async


@contextmanager
def only_sampled(trainer: Any, record: RolloutRecord | None) -> Iterator[None]:
    """Let the block ask a trainer's rewards about the completions of a rollout that are not of gold groups.

    To the others they give 0. Where this process has no such completion they are asked about its first one, for TRL
    expects what a reward logs in each rollout. A reward model (`nn.Module`), which TRL runs by itself, reads all.

    Args:
        trainer: Has `reward_funcs`.
        record: None: all completions are sampled.
    """
    rewards = trainer.reward_funcs
    if record is not None and record.gold_groups:
        rows = (~record.is_gold_prompt_B).nonzero().squeeze(1).tolist() or [0]
        trainer.reward_funcs = [
            reward if isinstance(reward, nn.Module) else _asking(reward, rows, len(record.rows)) for reward in rewards
        ]
    try:
        yield
    finally:
        trainer.reward_funcs = rewards


def _asking(reward: Callable[..., Any], rows: Sequence[int], num_rows: int) -> Callable[..., Any]:
    """Return a reward of `num_rows` completions that asks `reward` about those in `rows`."""

    def of_rows(name: str, value: Any) -> Any:
        if name == "log_extra":
            return lambda column, values: value(column, _spread(values, rows, num_rows, None))
        return [value[i] for i in rows] if isinstance(value, list) and len(value) == num_rows else value

    def call(**batch: Any) -> Any:
        return _spread(reward(**{name: of_rows(name, value) for name, value in batch.items()}), rows, num_rows, 0.0)

    async def call_async(**batch: Any) -> Any:
        values = await reward(**{name: of_rows(name, value) for name, value in batch.items()})
        return _spread(values, rows, num_rows, 0.0)

    return call_async if is_async(reward) else call


def _spread(values: Any, rows: Sequence[int], num_rows: int, rest: Any) -> Any:
    """Return values of the completions in `rows` as values of all; others get `rest`. What is no such list stays."""
    if not isinstance(values, list | tuple) or len(values) != len(rows):
        return values
    spread = [rest] * num_rows
    for i, value in zip(rows, values, strict=True):
        spread[i] = value
    return spread
