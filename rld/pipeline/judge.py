"""The judge of a run: the function that decides which answers are correct outside of training."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from transformers import TrainerState

from rld.recipe import registry, trl_rewards
from rld.recipe.schema import Recipe
from rld.rollout.rewards import Reward, all_checked
from rld.rollout.verifier import Verify, askable


def load_judge(recipe: Recipe, folder: Path) -> Verify:
    """Return the recipe's judge: a function with the signature of a reward that returns 1 for correct answers.

    Where the judge does not apply to a row (it returns None), or cannot be called on any text (it takes a model, or
    is asynchronous), the answer is compared with the gold answer, or checked by reasoning-gym's verifier for its tasks.

    Args:
        recipe: The recipe.
        folder: The folder that paths in the recipe are relative to.

    Raises:
        LibraryError: there is no such function.
    """
    exact: Any = registry.load("rewards", "reasoning:exact_credit", folder)
    spec = recipe.judge_in_use
    reward = registry.load("rewards", spec.use, folder)
    if registry.takes_model(inspect.signature(reward).parameters):
        verify = None
    else:
        function = Reward(trl_rewards.bound(reward, dict(spec.options)), spec.success_at, spec.timeout_seconds)
        verify = askable(all_checked(function, decides=True) or [], TrainerState)

    def judge(**batch: Any) -> list[float | None]:
        no_rewards: list[float | None] = [None] * len(batch["completions"])
        rewards = no_rewards if verify is None else verify(**batch)
        if None not in rewards:
            return rewards
        return [credit if reward is None else reward for reward, credit in zip(rewards, exact(**batch), strict=True)]

    return judge
