"""Checks of rewards: errors for invalid return values and exceptions name the reward, the row and the completion.

TRL calls a reward with lists, one element per completion: `prompts`, `completions`, `completion_ids` and the rows'
other columns. It also passes objects that are not columns, such as `trainer_state`. A reward with an argument called
`whole_completions` gets the completions with their thinking parts too.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from rld.errors import RewardError
from rld.utils.user_calls import (
    REWARD_SECONDS,
    UserCodeStopped,
    UserCodeTimeout,
    action,
    frames,
    stopped_sentence,
    user_code,
)

_LONGEST = 80

_WHOLE = "whole_completions"

_LARGEST = float(np.finfo(np.float32).max)
"""TRL keeps rewards in float32."""

_ROUNDING = 1e-6
"""Relative difference of a value in float32 that is due to rounding."""


@dataclass(frozen=True)
class Reward:
    """A reward with what a function alone doesn't tell.

    Attributes:
        function: The reward; a reward model, or its name, can only have `success_at`.
        success_at: The value, in the reward's own scale, from which an answer counts as correct. None: 1, and a reward
            that decides which answers are correct has values in [0, 1] only.
        timeout_seconds: Seconds that a call for one rollout may take.
    """

    function: Any
    success_at: float | None = None
    timeout_seconds: float = REWARD_SECONDS

    def __post_init__(self) -> None:
        if self.success_at is not None and not math.isfinite(self.success_at):
            raise RewardError(f"success_at of {callable_name(self)!r} should be a finite number, not {self.success_at}")
        if not 0 < self.timeout_seconds < math.inf:
            seconds = self.timeout_seconds
            raise RewardError(f"timeout_seconds of {callable_name(self)!r} should be above 0, not {seconds}")

    def __call__(self, **batch: Any) -> Any:
        return self.function(**batch)


@dataclass(frozen=True)
class SuccessRule:
    """Tells from a reward's value whether the answer is correct.

    Attributes:
        name: The reward's name in errors.
        success_at: As in `Reward`.
        is_used: Whether anything depends on it. If not, values outside [0, 1] are no error.
    """

    name: str = "verifier"
    success_at: float | None = None
    is_used: bool = True

    @property
    def threshold(self) -> float:
        """The least value of a correct answer, with room for rounding."""
        value = 1.0 if self.success_at is None else self.success_at
        return value - _ROUNDING * max(1.0, abs(value))

    def problem(self, values: Iterable[float | None]) -> tuple[int, str] | None:
        """Return the index of the first value on another scale than the rule's, and what is wrong with it."""
        if self.success_at is not None or not self.is_used:
            return None
        for i, value in enumerate(values):
            if value is not None and not math.isnan(value) and not -_ROUNDING <= value <= 1 + _ROUNDING:
                fix = "set success_at to the least value of a correct answer"
                return i, f"it decides which answers are correct by values from 0 to 1; {fix}"
        return None


DEFAULT_RULE = SuccessRule()
"""The rule of a verifier without a threshold of its own: 1 is correct."""


def checked(reward: Callable[..., Any], name: str, *, decides: bool = False) -> Callable[..., Any]:
    """Return `reward` under the name `name`, with checks of its return values and exceptions, and a limit of time.

    A reward model (`nn.Module`) is returned as it is, and an asynchronous reward stays asynchronous. The result has the
    attributes `rule`, a `SuccessRule`, and `rejects_beginning`, the reward's, checked too, or None.

    Args:
        decides: Whether it decides which answers are correct.

    Raises:
        RewardError: when called, if the reward raises, ends the process, takes too long, or does not return one finite
            number or None per completion, or if it decides and a number is outside [0, 1]; the message names the
            reward, the row and the completion.
    """
    function = reward.function if isinstance(reward, Reward) else reward
    if isinstance(function, nn.Module):
        return function
    rule = SuccessRule(name, getattr(reward, "success_at", None), decides)
    seconds: float = getattr(reward, "timeout_seconds", REWARD_SECONDS)
    reads_whole = _reads_whole(function)

    def call(**batch: Any) -> list[float | None]:
        batch = _with_whole(batch) if reads_whole else _without_whole(batch)
        try:
            with user_code(seconds):
                returned = function(**_copied(batch))
        except Exception as error:
            outcomes = (_outcome(function, row, seconds) for row in _rows(batch))
            raise _raised(name, error, batch, _recurs(error, outcomes)) from error
        return _numbers(returned, rule, batch)

    async def call_async(**batch: Any) -> list[float | None]:
        batch = _with_whole(batch) if reads_whole else _without_whole(batch)
        try:
            returned = await _awaited(function, _copied(batch), seconds)
        except Exception as error:
            rows = [] if isinstance(error, UserCodeTimeout) else _rows(batch)
            outcomes = await asyncio.gather(*(_awaited(function, row, seconds) for row in rows), return_exceptions=True)
            raise _raised(name, error, batch, _recurs(error, outcomes)) from error
        return _numbers(returned, rule, batch)

    checked_reward: Any = call_async if is_async(function) else call
    checked_reward.__name__, checked_reward.rule, checked_reward.seconds = name, rule, seconds
    rejects = _rejects_beginning(function)
    checked_reward.rejects_beginning = None if rejects is None else checked(rejects, f"{name}.rejects_beginning")
    return cast(Callable[..., Any], checked_reward)


def _rejects_beginning(reward: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return a reward's function `rejects_beginning` with the reward's options; None where it has none.

    It has the reward's signature, and gives 1 to a text if the reward gives 0 to every completion that begins with it.
    """
    function = _unwrapped(reward)
    attributes = getattr(function, "__dict__", {})
    if "rejects_beginning" not in attributes or "__wrapped__" in attributes:  # it may be that of the wrapped function
        return None
    options = reward.keywords if isinstance(reward, functools.partial) else {}
    return functools.partial(attributes["rejects_beginning"], **options)


def _reads_whole(function: Callable[..., Any]) -> bool:
    try:
        return _WHOLE in inspect.signature(function).parameters
    except (TypeError, ValueError):  # it is compiled and has no signature
        return False


def _with_whole(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with `whole_completions`, which outside of rollouts are the completions."""
    return {_WHOLE: batch["completions"], **batch}


def _without_whole(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != _WHOLE}


def _copied(value: Any) -> Any:
    """Return a value whose lists and mappings a reward may change: others, and the trainer, read the same ones."""
    if type(value) is list:
        return [_copied(item) for item in value]
    return {key: _copied(item) for key, item in value.items()} if type(value) is dict else value


async def _awaited(function: Callable[..., Any], batch: dict[str, Any], seconds: float) -> Any:
    """Return what an asynchronous reward returns; errors are as in `user_code`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await function(**batch)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise UserCodeTimeout(f"did not return within {seconds:g} seconds") from error
    except SystemExit as error:
        raise UserCodeStopped(stopped_sentence(error)).with_traceback(error.__traceback__) from None


def callable_name(reward: Callable[..., Any]) -> str:
    """Return the name under which TRL logs a reward: that of a partial's function, or that of an object's class."""
    function = _unwrapped(reward)
    return getattr(function, "__name__", type(function).__name__)


def _unwrapped(reward: Any) -> Any:
    while isinstance(reward, functools.partial | Reward):
        reward = reward.func if isinstance(reward, functools.partial) else reward.function
    return reward


def all_checked(rewards: Any, *, decides: bool = False) -> list[Any] | None:
    """Return TRL's `reward_funcs` as a list of checked rewards; reward models, loaded or by name, are unchanged.

    TRL logs a reward under its name, and mixes those of one name. Rewards of an equal name are therefore numbered, as
    `brief` and `brief_2`.

    Args:
        decides: Whether the first of them decides which answers are correct.
    """
    if rewards is None:
        return None
    reward_list = rewards if isinstance(rewards, (list, tuple)) else [rewards]
    return [
        _unwrapped(reward)
        if isinstance(_unwrapped(reward), (str, nn.Module))
        else checked(reward, name, decides=decides and i == 0)
        for i, (reward, name) in enumerate(zip(reward_list, _own_names(reward_list), strict=True))
    ]


def _own_names(rewards: Sequence[Any]) -> list[str]:
    """Return the names of rewards, numbered where several have one name."""
    names: list[str] = []
    for reward in rewards:
        name = callable_name(reward)
        others = sum(callable_name(other) == name for other in rewards[: len(names)])
        names.append(f"{name}_{others + 1}" if others else name)
    return names


def is_async(reward: Callable[..., Any]) -> bool:
    function = _unwrapped(reward)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def rows_of(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Return a batch of some rows of `batch`, by their indices; values that are not columns are passed unchanged."""
    size = len(batch["completions"])
    return {
        key: [value[i] for i in rows] if isinstance(value, list) and len(value) == size else value
        for key, value in batch.items()
    }


def _rows(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return a batch of one row for each row of `batch`."""
    return (rows_of(batch, [i]) for i in range(len(batch["completions"])))


def _outcome(reward: Callable[..., Any], row: dict[str, Any], seconds: float) -> Any:
    """Return the value that a reward returns, or the exception that it raises."""
    try:
        with user_code(seconds):
            return reward(**row)
    except Exception as error:
        return error


def _recurs(error: Exception, outcomes: Iterable[Any]) -> int | None:
    """Return the index of the first row that on its own raises the batch's type of exception, or None."""
    if isinstance(error, UserCodeTimeout):
        return None  # each row may take as long
    return next((i for i, outcome in enumerate(outcomes) if type(outcome) is type(error)), None)


def _raised(name: str, error: Exception, batch: dict[str, Any], index: int | None) -> RewardError:
    size = len(batch["completions"])
    if isinstance(error, UserCodeTimeout):
        where = f"on a batch of {size} completions; its timeout_seconds is the limit"
    elif index is None:
        where = "on the whole batch, but on none of its rows alone"
    else:
        where = _place(batch, index)
    inner = [frame for frame in frames(error) if frame.filename != __file__]
    reward_frames = [frame for frame in inner if frame.filename == inner[0].filename]
    line = f" ({reward_frames[-1].filename}:{reward_frames[-1].lineno})" if reward_frames else ""
    return RewardError(f"reward {name!r} {action(error)}{line} {where}")


def _place(batch: dict[str, Any], index: int) -> str:
    answer = f", answer {_excerpt(batch['answer'][index])}" if "answer" in batch else ""
    prompt, completion = batch["prompts"][index], batch["completions"][index]
    return f"at row {index} of the batch: prompt {_excerpt(prompt)}{answer}, completion {_excerpt(completion)}"


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"


def _numbers(returned: Any, rule: SuccessRule, batch: dict[str, Any]) -> list[float | None]:
    size, name = len(batch["completions"]), rule.name
    unordered = (str, bytes, Mapping, Set)
    values = list(returned) if isinstance(returned, Iterable) and not isinstance(returned, unordered) else None
    if values is None or len(values) != size:
        description = _excerpt(returned) if values is None else f"{len(values)} values"
        raise RewardError(
            f"reward {name!r} returned {description}; it should return {size} numbers, one per completion"
        )
    numbers = [_number(value) for value in values]
    for i, (value, number) in enumerate(zip(values, numbers, strict=True)):
        if number is not None and not abs(number) <= _LARGEST:
            raise RewardError(
                f"reward {name!r} returned {_excerpt(value)} {_place(batch, i)}; "
                "it should return a finite number, or None where it does not apply"
            )
    problem = rule.problem(numbers)
    if problem is not None:
        i, reason = problem
        raise RewardError(f"reward {name!r} returned {_excerpt(values[i])} {_place(batch, i)}; {reason}")
    return numbers


def _number(value: Any) -> float | None:
    """Return a reward as a float, None for None, and NaN for any other value that is not a number."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    try:
        return float(value) if isinstance(value, Real | Decimal) else None if value is None else math.nan
    except OverflowError:
        return math.inf
