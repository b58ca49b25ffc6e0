"""Show a recipe before it runs: its models, skills and stages, and what each will cost."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rld.recipe.cost import stage_costs
from rld.recipe.registry import can_judge
from rld.recipe.schema import Recipe
from rld.recipe.sizes import StageCost, quantity
from rld.recipe.stages import AnyStage


def overview(recipe: Recipe, relative_to: Path) -> RenderableType:
    """Return what `rld check` prints; paths in the recipe are looked up from the folder `relative_to`."""
    costs = stage_costs(recipe, relative_to)
    parts: list[RenderableType] = [_skills(recipe)]
    if any(stage.uses_rewards for stage in recipe.stages):
        parts.append(_rewards(recipe))
    parts.append(_judge(recipe, relative_to))
    skills = list(recipe.skills)
    parts += [_stage(number, stage, costs[stage.name], skills) for number, stage in enumerate(recipe.stages, 1)]
    flops = [cost.flops for cost in costs.values() if cost.flops is not None]
    total = sum(flops) if len(flops) == len(costs) else None
    notes = (
        f"FLOPs in all: about {quantity(total)}, for answers of {recipe.max_new_tokens} tokens; prompts and scoring "
        "come on top. Memory is that of weights, gradients and AdamW in float32; activations come on top."
    )
    if total is None:
        notes += " A size is unknown where a model is not on this machine yet, or rld cannot tell it for its kind."
    return Group(*parts, Text(f"\n{notes}"))


def _skills(recipe: Recipe) -> Table:
    table = Table(
        "skill", "rows from", "levels", "held out", title=f"{recipe.name} (seed {recipe.seed})", title_justify="left"
    )
    for name, skill in recipe.skills.items():
        levels = "in the file" if skill.num_levels is None else str(skill.num_levels)
        table.add_row(Text(name), Text(skill.origin), levels, str(skill.held_out))
    return table


def _rewards(recipe: Recipe) -> Text:
    rewards = ", ".join(f"{spec.use} x {spec.weight:g}" for spec in recipe.rewards)
    return Text(f"rewards: {rewards}\nverifier: {recipe.verifier_in_use.use}")


def _judge(recipe: Recipe, relative_to: Path) -> Text:
    """Say what decides which answers are correct outside of training."""
    use = recipe.judge_in_use.use
    if can_judge(use, relative_to):
        return Text(f"judge of held-out answers: {use}")
    return Text(
        f"judge of held-out answers: comparison with the gold answers, because {use} reads a model or is asynchronous"
    )


def _stage(number: int, stage: AnyStage, cost: StageCost, skills: list[str]) -> Table:
    table = Table(box=None, show_header=False, title=f"\n{number}. {stage.name}: {stage.kind}")
    table.title_justify = "left"
    for name, text in stage.describe(cost, skills):
        table.add_row(name, Text(text))
    table.add_row("costs", f"FLOPs: about {quantity(cost.flops)}; bytes of memory: {quantity(cost.bytes)}")
    return table
