"""Checks of rewards: errors for invalid return values and exceptions name the reward, the row and the completion.

TRL calls a reward with lists, one element per completion: `prompts`, `completions`, `completion_ids` and the rows'
other columns. It also passes objects that are not columns, such as `trainer_state`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from rld.errors import RewardError

_SHOWN = 80


def checked(reward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return `reward` under the name `name`, with checks of its return values and exceptions.

    A reward model (`nn.Module`) is returned as it is, and an asynchronous reward stays asynchronous.

    Raises:
        RewardError: when called, if the reward raises, or does not return one finite number or None per completion; the
            message names the reward, the row and the completion.
    """
    if isinstance(reward, nn.Module):
        return reward

    def call(**batch: Any) -> list[float | None]:
        try:
            returned = reward(**batch)
        except Exception as error:
            outcomes = (_outcome(reward, row) for row in _rows(batch))
            raise _raised(name, error, batch, _recurs(error, outcomes)) from error
        return _numbers(returned, name, batch)

    async def call_async(**batch: Any) -> list[float | None]:
        try:
            returned = await reward(**batch)
        except Exception as error:
            outcomes = await asyncio.gather(*(reward(**row) for row in _rows(batch)), return_exceptions=True)
            raise _raised(name, error, batch, _recurs(error, outcomes)) from error
        return _numbers(returned, name, batch)

    checked_reward: Callable[..., Any] = call_async if is_async(reward) else call
    checked_reward.__name__ = name
    return checked_reward


def callable_name(reward: Callable[..., Any]) -> str:
    """Return the name under which TRL logs a reward: that of a partial's function, or that of an object's class."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def all_checked(rewards: Any) -> list[Any] | None:
    """Return TRL's `reward_funcs` as a list of checked rewards; reward models, loaded or by name, are unchanged."""
    if rewards is None:
        return None
    reward_list = rewards if isinstance(rewards, (list, tuple)) else [rewards]
    return [r if isinstance(r, (str, nn.Module)) else checked(r, callable_name(r)) for r in reward_list]


def is_async(reward: Callable[..., Any]) -> bool:
    while isinstance(reward, functools.partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


def _rows(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a batch of one row for each row of `batch`; values that are not columns are passed unchanged."""
    size = len(batch["completions"])
    for i in range(size):
        yield {
            key: value[i : i + 1] if isinstance(value, list) and len(value) == size else value
            for key, value in batch.items()
        }


def _outcome(reward: Callable[..., Any], row: dict[str, Any]) -> Any:
    """Return the value that a reward returns, or the exception that it raises."""
    try:
        return reward(**row)
    except Exception as error:
        return error


def _recurs(error: Exception, outcomes: Iterable[Any]) -> int | None:
    """Return the index of the first row that on its own raises the batch's type of exception, or None."""
    return next((i for i, outcome in enumerate(outcomes) if type(outcome) is type(error)), None)


def _raised(name: str, error: Exception, batch: dict[str, Any], index: int | None) -> RewardError:
    where = "on the whole batch, but on none of its rows alone" if index is None else _place(batch, index)
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the frame of this module
    reward_frames = [frame for frame in frames if frame.filename == frames[0].filename]
    line = f" ({reward_frames[-1].filename}:{reward_frames[-1].lineno})" if reward_frames else ""
    return RewardError(f"reward {name!r} raised {type(error).__name__}: {error}{line} {where}")


def _place(batch: dict[str, Any], index: int) -> str:
    answer = f", answer {_shown(batch['answer'][index])}" if "answer" in batch else ""
    prompt, completion = batch["prompts"][index], batch["completions"][index]
    return f"at row {index} of the batch: prompt {_shown(prompt)}{answer}, completion {_shown(completion)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def _numbers(returned: Any, name: str, batch: dict[str, Any]) -> list[float | None]:
    size = len(batch["completions"])
    values = list(returned) if isinstance(returned, Iterable) and not isinstance(returned, (str, dict)) else None
    if values is None or len(values) != size:
        description = _shown(returned) if values is None else f"{len(values)} values"
        raise RewardError(
            f"reward {name!r} returned {description}; it should return {size} numbers, one per completion"
        )
    numbers = [_number(value) for value in values]
    for i, (value, number) in enumerate(zip(values, numbers, strict=True)):
        if number is not None and not math.isfinite(number):
            raise RewardError(
                f"reward {name!r} returned {_shown(value)} {_place(batch, i)}; "
                "it should return a finite number, or None where it does not apply"
            )
    return numbers


def _number(value: Any) -> float | None:
    """Return a reward as a float, None for None, and NaN for any other value that is not a number."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, int, float)):
        return float(value)
    return None if value is None else math.nan
