"""Rewards that fail clearly, and the counts that measure a rollout.

TRL calls a reward with lists, one element per completion: `prompts`, `completions`, `completion_ids` and the rows'
other columns; and with a few objects that are no columns, such as `trainer_state`.

Shapes: B completions over all processes, R rewards, S skills.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import get_callable_name

from rld.errors import DataError, RewardError
from rld.types import DEFAULT_SKILL

_SUCCESS = 1 - 1e-6
_SHOWN = 80

Verify = Callable[..., list[float | None]]
"""A reward with TRL's signature."""


def checked(reward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return `reward` under the name `name`, refusing what TRL would stumble over or train on.

    A reward model (`nn.Module`) is returned as it is, and an asynchronous reward stays asynchronous.

    Raises:
        RewardError: when called, if the reward raises, or returns anything but one finite number or None for each
            completion; names the reward, the row and the completion.
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

    chosen: Callable[..., Any] = call_async if _is_async(reward) else call
    chosen.__name__ = name
    return chosen


def all_checked(rewards: Any) -> list[Any] | None:
    """Return TRL's `reward_funcs` as a list of checked ones; reward models, loaded or by name, stay as they are."""
    if rewards is None:
        return None
    listed = rewards if isinstance(rewards, (list, tuple)) else [rewards]
    return [r if isinstance(r, (str, nn.Module)) else checked(r, get_callable_name(r)) for r in listed]


def no_reward(completions: list[Any], **_: Any) -> list[float]:
    """Stand in for the verifiers of a run that has none: pure distillation."""
    return [0.0] * len(completions)


def _is_async(reward: Callable[..., Any]) -> bool:
    while isinstance(reward, functools.partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


def _rows(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield batches of one row; what is not a column of the batch stays whole."""
    size = len(batch["completions"])
    for i in range(size):
        yield {
            key: value[i : i + 1] if isinstance(value, list) and len(value) == size else value
            for key, value in batch.items()
        }


def _outcome(reward: Callable[..., Any], row: dict[str, Any]) -> Any:
    """Return what a reward returns or raises."""
    try:
        return reward(**row)
    except Exception as error:
        return error


def _recurs(error: Exception, outcomes: Iterable[Any]) -> int | None:
    """Return the first row that raises alone what the batch raised, or None."""
    return next((i for i, outcome in enumerate(outcomes) if type(outcome) is type(error)), None)


def _raised(name: str, error: Exception, batch: dict[str, Any], index: int | None) -> RewardError:
    where = "on the whole batch, but on none of its rows alone" if index is None else _place(batch, index)
    frames = traceback.extract_tb(error.__traceback__)[1:]  # after our own
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    line = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
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
        found = _shown(returned) if values is None else f"{len(values)} values"
        raise RewardError(f"reward {name!r} returned {found}; it should return {size} numbers, one per completion")
    numbers = [_number(value) for value in values]
    for i, (value, number) in enumerate(zip(values, numbers, strict=True)):
        if number is not None and not math.isfinite(number):
            raise RewardError(
                f"reward {name!r} returned {_shown(value)} {_place(batch, i)}; "
                "it should return a finite number, or None where it does not apply"
            )
    return numbers


def _number(value: Any) -> float | None:
    """Return a reward as a float, and NaN for what is no number."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, int, float)):
        return float(value)
    return None if value is None else math.nan


def places(num_rows: int, accelerator: Accelerator) -> Tensor:
    """Return the places of this process's rows among those of all processes, `[B]`."""
    first = accelerator.process_index * num_rows
    return torch.arange(first, first + num_rows, device=accelerator.device)


def skill_ids(rows: list[dict[str, Any]], skills: list[str]) -> Tensor:
    """Return the index of each row's skill, `[B]`.

    Raises:
        DataError: a row carries another skill.
    """
    labels = [str(row.get("skill", DEFAULT_SKILL)) for row in rows]
    unknown = sorted(set(labels) - set(skills))
    if unknown:
        raise DataError(f"rows carry the skill {unknown[0]!r}, which is none of {skills}; name it in `skills`")
    index = {skill: s for s, skill in enumerate(skills)}
    return torch.tensor([index[label] for label in labels])


def gold_completions(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, longest: int | None
) -> list[list[int]]:
    """Return each row's gold answer as a completion of at most `longest` tokens, the end included; None: any length.

    Raises:
        DataError: a row has no answer.
    """
    answers = [row.get("answer") for row in rows]
    for i, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise DataError(f"row {i} of a rollout has no text in its column 'answer', which gold completions need")
    ids = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    return [[*tokens, tokenizer.eos_token_id][:longest] for tokens in ids]


def verifier(rewards: list[Any], state: Callable[[], Any]) -> Verify | None:
    """Return the first of the rewards where it can be asked about any text, by `ask`, else None.

    Args:
        rewards: The rewards.
        state: Gives the trainer's state, which is another object once training has begun.
    """
    first = rewards[0]
    if isinstance(first, (str, nn.Module)) or _is_async(first) or first.__name__ == no_reward.__name__:
        return None
    return lambda **asked: first(trainer_state=state(), log_extra=_unlogged, log_metric=_unlogged, **asked)


def _unlogged(*_: Any) -> None:
    """Stand in for TRL's `log_extra` and `log_metric`: the text is no completion of a rollout."""


def ask(
    verify: Verify, rows: Sequence[dict[str, Any]], completions: Sequence[Any], ids: Sequence[list[int]]
) -> list[float | None]:
    """Ask a reward about completions as TRL would; of chats they may be plain texts."""
    columns = {key: [row.get(key) for row in rows] for row in rows[:1] for key in row if key != "prompt"}
    prompts = [row["prompt"] for row in rows]
    said = [
        [{"role": "assistant", "content": text}] if isinstance(text, str) and not isinstance(prompt, str) else text
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    return verify(prompts=prompts, completions=said, completion_ids=list(ids), **columns)


def is_success(reward: float) -> bool:
    """Tell whether the verifier's reward means a right answer."""
    return reward >= _SUCCESS


def successes(rewards: Tensor) -> Tensor:
    """Return which completions the verifier, the first of the rewards `[B, R]`, gives 1: `[B]`."""
    return rewards[:, 0] >= _SUCCESS


def group_counts(
    rewards: Tensor, weights: Tensor, skills: Tensor, num_generations: int, num_skills: int, gold: int = 0
) -> tuple[Tensor, Tensor]:
    """Count successes and informative groups per skill.

    Args:
        rewards: `[B, R]`, over all processes; NaN where a reward does not apply. The first is the verifier.
        weights: `[R]`.
        skills: `[B]`, the index of each completion's skill; the same within a group.
        num_generations: Completions per group; groups are consecutive.
        num_skills: S.
        gold: The first so many completions of each group are gold answers: no attempts of the student's.

    Returns:
        Which completions were attempted (the student's own that the verifier applies to) and which succeeded (it gave
        them 1), `[2, B]` bool, and per skill `[S, 4]` float64: attempts, successes, groups, and informative groups,
        those whose weighted rewards differ.
    """
    own = torch.arange(len(rewards), device=rewards.device) % num_generations >= gold
    attempted = ~rewards[:, 0].isnan() & own
    success = successes(rewards) & own
    totals = (rewards * weights.to(rewards)).nansum(1)
    scored = ~rewards.isnan().all(1)
    highest = totals.masked_fill(~scored, -math.inf).view(-1, num_generations).amax(1)
    lowest = totals.masked_fill(~scored, math.inf).view(-1, num_generations).amin(1)
    counts = torch.zeros(num_skills, 4, dtype=torch.float64, device=rewards.device)
    counts[:, :2].index_add_(0, skills, torch.stack([attempted, success], 1).double())
    groups = torch.stack([torch.ones_like(highest), highest > lowest], 1).double()
    counts[:, 2:].index_add_(0, skills[::num_generations], groups)
    return torch.stack([attempted, success]), counts


def gate_counts(
    own_B2: Tensor,
    skills_B: Tensor,
    asked_BK: Tensor,
    open_BK: Tensor,
    again_BK2: Tensor,
    num_generations: int,
    num_skills: int,
) -> Tensor:
    """Count what the gate saw, per skill and teacher, over all processes.

    Args:
        own_B2: Whether a completion is an attempt of the student's, and whether it succeeded.
        skills_B: The index of each completion's skill.
        asked_BK: The teachers that were asked to answer the prompt.
        open_BK: Those that answered it rightly.
        again_BK2: Whether one was asked once more, and was right again; at one completion of each prompt.
        num_generations: Completions per prompt; groups are consecutive.
        num_skills: S.

    Returns:
        `[S, K, 6]` float64: prompts asked, prompts answered rightly, on the latter the student's attempts and
        successes, and of the latter those asked once more and answered rightly again.
    """
    counts = torch.zeros(num_skills, asked_BK.shape[1], 6, dtype=torch.float64, device=open_BK.device)
    prompts = torch.stack([asked_BK, open_BK], dim=-1)[::num_generations].double()
    counts[..., :2].index_add_(0, skills_B[::num_generations], prompts)
    own = open_BK[..., None] * own_B2[:, None].double()
    counts[..., 2:4].index_add_(0, skills_B, own)
    counts[..., 4:].index_add_(0, skills_B, again_BK2.double())
    return counts
