"""Estimate the cost of a run before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from rld.recipe.schema import Recipe
from rld.recipe.sizes import Sizes, StageCost


def stage_costs(recipe: Recipe, relative_to: Path) -> dict[str, StageCost]:
    """Return the cost of each stage by name; paths are relative to the folder `relative_to`."""
    sizes = Sizes(recipe.models, recipe.tokenizer, list(recipe.skills), recipe.max_new_tokens, relative_to)
    costs = {}
    for stage in recipe.stages:
        costs[stage.name] = stage.cost(sizes)
        sizes.add_stage(stage.name, costs[stage.name].parameters)
    return costs
