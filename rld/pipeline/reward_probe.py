"""Call the functions that decide which answers are correct on a few texts before anything is loaded or trained."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import TrainerState

from rld.errors import RecipeError
from rld.pipeline.reward_loading import Rewards
from rld.pipeline.run import RunContext
from rld.recipe import registry
from rld.recipe.schema import Recipe
from rld.recipe.stages.distill import Distill
from rld.rollout.feedback import FEEDBACK, log_nothing
from rld.rollout.rewards import Reward, all_checked
from rld.rollout.verifier import Verify, ask, askable
from rld.types import Row
from rld.utils.templates import rollout_fields


def probe_judge(context: RunContext) -> None:
    """Call the run's judge.

    Raises:
        RewardError: as `rewards.checked`.
    """
    recipe = context.recipe
    place = recipe.place("judge") if recipe.judge is not None else _place_of_verifier(recipe)
    with recipe.mistakes_at(place):
        _probe(context.evaluator.settings.judge, context, recipe.skills)


def probe_rewards(context: RunContext, stage: Distill, rewards: Rewards) -> None:
    """Call a stage's rewards, its verifier and its audit, where they need no model.

    Raises:
        RecipeError: a teacher's prompt shows feedback, and no reward gives any.
        RewardError: as `rewards.checked`.
    """
    recipe, state = context.recipe, functools.partial(TrainerState, max_steps=stage.steps)
    verifier = rewards.functions[0] if rewards.verifier is None else rewards.verifier
    rewards_by_place = [
        (_place_of_verifier(recipe), verifier),
        (recipe.place("stages", stage.name, "audit"), rewards.audit),
    ]
    rewards_by_place += [(recipe.place("rewards", i), reward) for i, reward in enumerate(rewards.functions)]
    columns, may_log = set[str](), False

    def log_extra(column: str, values: Any) -> None:
        columns.add(column)

    for place, reward in rewards_by_place:
        if reward is None:
            continue
        is_audit, verify = reward is rewards.audit, None
        if not _takes_model(reward):
            decides = reward in (verifier, rewards.audit)
            with recipe.mistakes_at(place):
                log = log_nothing if is_audit else log_extra  # no teacher reads an audit's feedback
                verify = askable(all_checked(reward, decides=decides) or [], state, log)
                _probe(verify, context, context.skills(stage))
        may_log = may_log or (not is_audit and (verify is None or "log_extra" in _arguments(reward)))
    if not may_log and FEEDBACK not in columns:
        _require_no_reader(context, stage)


def _require_no_reader(context: RunContext, stage: Distill) -> None:
    """Refuse a stage in which a teacher's prompt shows feedback, where no reward gives any."""
    for name, spec in stage.teachers.items():
        if FEEDBACK in rollout_fields(spec.prompt):
            with context.recipe.mistakes_at(context.recipe.place("stages", stage.name, "teachers", name, "prompt")):
                raise RecipeError(
                    f"it shows {{{FEEDBACK}}}, and none of the rewards gives any: let one call "
                    f"log_extra('{FEEDBACK}', texts), as code:unit_tests does"
                )


def _place_of_verifier(recipe: Recipe) -> str:
    return recipe.place("verifier") if recipe.verifier is not None else recipe.place("rewards", 0)


def _probe(verify: Verify | None, context: RunContext, skills: Iterable[str]) -> None:
    """Call a verifier on a gold answer and on a wrong one of each skill."""
    rows: list[Row] = [row for skill in skills for row in context.skill_rows[skill].probe(1)]
    pairs = [(row, text) for row in rows for text in (row["answer"], str(row["prompt"])) if text]
    if verify is not None and pairs:
        texts = [text for _, text in pairs]
        ids = [list(text.encode()) for text in texts]  # no tokenizer is loaded yet
        ask(verify, [row for row, _ in pairs], texts, ids)


def _takes_model(reward: Any) -> bool:
    return registry.takes_model(_arguments(reward))


def _arguments(reward: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(reward.function if isinstance(reward, Reward) else reward).parameters
