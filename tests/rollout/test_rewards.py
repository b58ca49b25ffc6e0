"""Rewards that fail clearly, and the counts that a controller goes by."""

from __future__ import annotations

import asyncio
import functools
import math
import sys
import time
from collections.abc import Generator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tests.support.tiny as tiny
from rld.errors import DataError, RewardError
from rld.rollout.counts import group_counts
from rld.rollout.gold import gold_completions
from rld.rollout.rewards import Reward, all_checked, checked
from rld.rollout.verifier import askable

BATCH: dict[str, Any] = {
    "prompts": ["p0", "p1", "p2"],
    "completions": ["c0", "c1", "c2"],
    "completion_ids": [[0], [1], [2]],
    "answer": ["a0", "a1", "a2"],
    "trainer_state": object(),
    "of another length": [1, 2],
    "log_metric": print,
}


def call(reward: Any, name: str = "mine") -> list[float | None]:
    return checked(reward, name)(**BATCH)


def test_numbers_of_every_kind_pass():
    for returned in (
        [1, 0.5, True],
        (np.float32(1), np.int64(0), np.bool_(True)),
        [torch.tensor(1.0), torch.tensor(2), None],
        np.array([0.0, 1.0, 2.0]),
        torch.tensor([0.0, 1.0, 2.0]),
        [Fraction(1, 2), Decimal("0.25"), None],
        (value for value in [0.0, 1.0, 0.5]),
    ):
        values = list(returned)
        wanted = [None if value is None else float(value) for value in values]
        returned = iter(values) if isinstance(returned, Generator) else returned
        assert call(lambda returned=returned, **_: returned) == wanted


def test_it_keeps_its_name_and_gets_what_trl_gives():
    seen = {}
    reward = checked(lambda **given: seen.update(given) or [0, 0, 0], "mine")
    reward(**BATCH)
    assert reward.__name__ == "mine" and seen == BATCH


def test_a_reward_may_change_the_lists_that_it_gets():
    def strip(completions: list[Any], prompts: list[str], **columns: Any) -> list[float]:
        for message in completions:
            message[0]["content"] = message[0]["content"].strip()
        completions.pop()
        prompts.clear()
        return [0.0, 1.0]

    batch = {"prompts": ["a", "b"], "completions": [[{"role": "assistant", "content": f" {i}"}] for i in range(2)]}
    assert checked(strip, "mine")(**batch) == [0.0, 1.0]
    assert batch["prompts"] == ["a", "b"] and [message[0]["content"] for message in batch["completions"]] == [
        " 0",
        " 1",
    ]


@pytest.mark.parametrize(
    "bad", ["1", math.nan, math.inf, [1.0], 1j, torch.tensor([1.0]), np.array([1.0]), np.float32("nan"), 1e300, 10**400]
)
def test_what_is_no_finite_number_is_refused_with_its_row(bad):
    with pytest.raises(
        RewardError, match=r"reward 'mine' returned .* row 1 .* prompt 'p1', answer 'a1', completion 'c1'"
    ):
        call(lambda **_: [0.0, bad, 0.0])


@pytest.mark.parametrize("bad", [[1.0], [0.0] * 4, None, 1.0, "abc", {"a": 1, "b": 2, "c": 3}, [], {0, 1, 2}, b"abc"])
def test_what_is_no_list_of_the_right_length_is_refused(bad):
    with pytest.raises(RewardError, match=r"reward 'mine' returned .* should return 3 numbers"):
        call(lambda **_: bad)


def fragile(completions: list[str], answer: list[str], *, at: str, **columns: Any) -> list[float]:
    assert len(completions) == len(answer) and columns["of another length"] == [1, 2]
    return [1 / (text != at) for text in completions]


async def fragile_async(**given: Any) -> list[float]:
    await asyncio.sleep(0)
    return fragile(**given)


@pytest.mark.parametrize("reward", [fragile, fragile_async])
def test_a_reward_that_raises_names_row_and_completion_and_line(reward):
    safe = checked(functools.partial(reward, at="c2"), "mine")

    def run() -> Any:
        return asyncio.run(safe(**BATCH)) if reward is fragile_async else safe(**BATCH)

    with pytest.raises(
        RewardError, match=r"'mine' raised ZeroDivisionError.*test_rewards.py:\d+.*row 2 .*completion 'c2'"
    ) as caught:
        run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert asyncio.iscoroutinefunction(safe) == (reward is fragile_async)


def test_a_reward_that_raises_only_on_the_whole_batch_says_so():
    def reward(completions: list[str], **_: Any) -> list[float]:
        if len(completions) > 1:
            raise KeyError("together")
        return [0.0]

    with pytest.raises(RewardError, match=r"'together'.* on the whole batch, but on none of its rows alone"):
        call(reward)


def test_a_reward_that_takes_other_arguments_is_an_error_of_the_same_kind():
    with pytest.raises(RewardError, match=r"'mine' raised TypeError: .*unexpected keyword argument"):
        call(lambda completions: [0.0] * len(completions))


def test_long_texts_are_shortened():
    batch = {**BATCH, "completions": ["x" * 5000] * 3}
    with pytest.raises(RewardError) as caught:
        checked(lambda **_: 1 / 0, "mine")(**batch)
    assert len(str(caught.value)) < 500


def test_rewards_of_one_name_are_logged_apart():
    def brief(completions, target, **_):
        return [0.0] * len(completions)

    rewards = [functools.partial(brief, target=5), len, functools.partial(brief, target=50)]
    assert [reward.__name__ for reward in all_checked(rewards) or []] == ["brief", "len", "brief_2"]


def test_reward_models_are_left_alone():
    model = nn.Linear(1, 1)
    assert checked(model, "model") is model


def test_a_reward_that_decides_has_values_from_0_to_1_or_a_threshold():
    def values(*values: Any) -> Any:
        return lambda **_: list(values)

    def decide(reward: Any) -> list[float | None]:
        verify = askable([checked(reward, "mine", decides=True)], object)
        assert verify is not None
        return verify(**BATCH)

    assert decide(values(True, None, np.float32(0.1))) == [1.0, None, float(np.float32(0.1))]
    for bad in (10, -1, 1.01, True + 1):
        with pytest.raises(RewardError, match=r"'mine' returned .* row 1 .*completion 'c1'; .* set success_at"):
            decide(values(0, bad, 0))
    assert decide(Reward(values(10, 7, None), success_at=8)) == [1.0, 0.0, None]
    assert decide(Reward(values(-3, -2.5, np.float32(0.7)), success_at=-2.5)) == [0.0, 1.0, 1.0]
    assert call(Reward(values(10, -7, None))) == [10.0, -7.0, None]  # a reward that is paid alone
    for options in ({"success_at": math.nan}, {"timeout_seconds": 0}, {"timeout_seconds": math.nan}):
        with pytest.raises(RewardError, match=next(iter(options))):
            Reward(call, **options)


def test_a_reward_that_ends_the_process_or_does_not_return_is_an_error():
    def leave(**_: Any) -> list[float]:
        sys.exit(0)

    async def leave_later(**_: Any) -> list[float]:
        sys.exit(0)

    def wait(**_: Any) -> list[float]:
        time.sleep(60)
        return []

    async def wait_async(**_: Any) -> list[float]:
        await asyncio.sleep(60)
        return []

    for reward in (leave, leave_later):
        safe = checked(reward, "mine")
        with pytest.raises(RewardError, match=r"'mine' called sys.exit\(0\) \(.*test_rewards.py:\d+\) at row 0"):
            asyncio.run(safe(**BATCH)) if reward is leave_later else safe(**BATCH)
    for reward in (wait, wait_async):
        safe = checked(Reward(reward, timeout_seconds=0.1), "mine")
        with pytest.raises(
            RewardError, match=r"'mine' did not return within 0.1 seconds.* on a batch of 3 completions"
        ):
            asyncio.run(safe(**BATCH)) if reward is wait_async else safe(**BATCH)


def test_counts():
    nan = math.nan
    rewards = torch.tensor(
        [
            *([1.0, 0.0], [0.0, 0.0]),  # skill 0: one success, informative
            *([1.0, 0.5], [1.0, 0.5]),  # skill 2: both succeed, nothing to learn
            *([0.5, 1.0], [1.0, 0.5]),  # skill 2: different rewards, the same weighted sum
            *([nan, 1.0], [0.0, nan]),  # skill 0: the verifier applies to one
            *([nan, nan], [1.0, nan]),  # skill 0: what has no reward does not make a group informative
            *([nan, nan], [-1.0, nan]),  # skill 0: nor here
        ]
    )
    skills = torch.tensor([0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0])
    _, success, counts = group_counts(rewards, torch.tensor([1.0, 1.0]), skills, group_size=2, num_skills=3)
    assert success.tolist() == [True, False, True, True, False, True, False, False, False, True, False, False]
    assert counts.to_json() == {
        "attempts_S": [5, 0, 4],
        "successes_S": [2, 0, 3],
        "groups_S": [4, 0, 2],
        "informative_S": [2, 0, 0],
        "levels_S": [0, 0, 0],
        "gold_S": [0, 0, 0],
        "sampled_S": [8, 0, 4],
        "attempt_tokens_S": [0, 0, 0],
        "success_tokens_S": [0, 0, 0],
    }


def test_weights_decide_what_is_informative():
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    for weight, informative in ((0.0, 0), (0.5, 1)):
        counts = group_counts(
            rewards, torch.tensor([1.0, weight]), torch.tensor([0, 0]), group_size=2, num_skills=1
        ).counts
        assert counts.informative_S.item() == informative


def test_gold_answers_are_no_attempts_but_make_a_group_informative():
    rewards, weights = torch.tensor([[1.0], [0.0], [1.0], [1.0]]), torch.tensor([1.0])
    attempted, success, counts = group_counts(
        rewards,
        weights,
        torch.zeros(4).long(),
        group_size=2,
        num_skills=1,
        is_sampled_A=torch.tensor([False, True] * 2),
    )
    assert attempted.tolist() == [False, True] * 2
    assert success.tolist() == [False, False, False, True]
    assert [value for (value,) in counts.to_json().values()] == [2, 1, 2, 1, 0, 0, 2, 0, 0]


def test_gold_completions_end_and_need_an_answer():
    rows = [{"prompt": "a", "answer": "ab"}, {"prompt": "b", "answer": "abcd"}]
    assert gold_completions(rows, tiny.encoder(), 5) == [[5, 6, 1], [5, 6, 7, 8, 1]]
    with pytest.raises(DataError, match=r"'abcd' takes 5 tokens with its end, and 4 are allowed.*prompt is 'b'"):
        gold_completions(rows, tiny.encoder(), 4)
    with pytest.raises(DataError, match=r"'a b' is 'ab' once"):
        gold_completions([{"prompt": "a", "answer": "a b"}], tiny.encoder(), 4)
    with pytest.raises(DataError, match=r"no text in its column 'answer'; its prompt is 'c'"):
        gold_completions([rows[0], {"prompt": "c", "answer": None}], tiny.encoder(), 4)
