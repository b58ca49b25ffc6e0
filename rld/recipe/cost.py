"""Estimate the cost of a run before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rld.recipe import registry
from rld.recipe.schema import Recipe
from rld.recipe.sizes import Lengths, Sizes, StageCost


def stage_costs(recipe: Recipe, relative_to: Path, rows: Mapping[str, Lengths] | None = None) -> dict[str, StageCost]:
    """Return the cost of each stage by name.

    Args:
        recipe: The recipe.
        relative_to: The folder that paths in the recipe are relative to.
        rows: The lengths of each skill's rows. None: prompts of no tokens and the longest answers.

    Raises:
        LibraryError: the recipe's verifier does not exist.
    """
    skills = list(recipe.skills)
    sizes = Sizes(
        recipe.models,
        recipe.tokenizer,
        skills,
        recipe.max_new_tokens,
        relative_to,
        rows or {},
        labels=recipe.label_words,
        blocks=recipe.blocks,
        can_judge=registry.can_judge(recipe.verifier_in_use.use, relative_to),
    )
    costs = {}
    for stage in recipe.stages:
        costs[stage.name] = stage.cost(sizes)
        sizes.add_stage(stage.name, costs[stage.name].parameters, origin=stage.origin, cut=stage.cut)
    return costs
