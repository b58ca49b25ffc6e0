"""What only a look at the whole recipe and at what it names can tell: each part's spec says it of its kind of part."""

from __future__ import annotations

from collections.abc import Iterator

from rld.recipe.document import RecipeDocument, RecipeProblem
from rld.recipe.models import AnyModel
from rld.recipe.names import RecipeNames, check_member, items
from rld.recipe.plugins import RewardSpec
from rld.recipe.skills import AnySkill
from rld.recipe.stages import AnyStage
from rld.utils.options import member_of


def problems(document: RecipeDocument) -> Iterator[RecipeProblem]:
    """Yield every mistake in how a recipe's parts fit together and in what they name."""
    names, tree = RecipeNames(document), document.tree
    match tree:
        case {"tokenizer": dict(), "prompts": {"style": "chat"}}:
            yield names.problem(("prompts", "style"), " cannot be chat: a tokenizer of characters has no chat template")
    for key, model in items(tree.get("models")):
        if isinstance(model, str):
            yield from names.weights(("models", key), model, [])
        yield from check_member(AnyModel, names, ("models", key), model)
    for key, skill in items(tree.get("skills")):
        yield from check_member(AnySkill, names, ("skills", key), skill)
    first_use = names.in_stage(_first_use_of_rewards(names), {})
    for i, reward in items(tree.get("rewards")):
        yield from RewardSpec.check(first_use, ("rewards", i), reward)
    for i, stage in enumerate(names.stages):
        yield from check_member(AnyStage, names.in_stage(i, stage), ("stages", i), stage)


def _first_use_of_rewards(names: RecipeNames) -> int:
    """Return how many stages have run when a reward is first asked."""
    kinds = [member_of(AnyStage, stage) for stage in names.stages]
    return next((i for i, kind in enumerate(kinds) if getattr(kind, "uses_rewards", False)), len(kinds))
