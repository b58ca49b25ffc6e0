"""Checks that need the whole recipe and the files and models it refers to. Each part's class has its own `check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rld.recipe import reserved_options
from rld.recipe.document import Loc, RecipeDocument, RecipeProblem, walk
from rld.recipe.evaluation import AnyEvaluator
from rld.recipe.models import AnyModel
from rld.recipe.names import RecipeNames, check_member, items
from rld.recipe.plugins import RewardSpec, VerifierSpec
from rld.recipe.sizes import parameters, quantity
from rld.recipe.skills import AnySkill
from rld.recipe.stages import AnyStage
from rld.recipe.stages.base import Stage, TrainingStage
from rld.recipe.trainer_options import check_trainer
from rld.utils.options import member_of
from rld.utils.secrets import has_credentials, is_secret_name

_DEPTHS = frozenset({"num_hidden_layers", "n_layer", "num_layers", "n_layers"})
"""Names of the number of blocks in configurations."""

_MAX_LAYERS = 10_000

_MAX_PARAMETERS = 10**13


def problems(document: RecipeDocument) -> Iterator[RecipeProblem]:
    """Yield the mistakes in references between a recipe's parts and to files, models and functions."""
    names, tree = RecipeNames(document), document.tree
    yield from _check_secrets(names)
    yield from _check_chats(names)
    yield from _check_trainer(names)
    for key, model in items(tree.get("models")):
        if isinstance(model, str):
            yield from names.weights(("models", key), model, [])
        yield from check_member(AnyModel, names, ("models", key), model)
        yield from _check_size(names, ("models", key, "config"), model)
    for i, evaluator in items(tree.get("evaluation")):
        yield from check_member(AnyEvaluator, names, ("evaluation", i), evaluator)
    for key, skill in items(tree.get("skills")):
        yield from check_member(AnySkill, names, ("skills", key), skill)
    first_use = names.in_stage(_first_use_of_rewards(names), {})
    for i, reward in items(tree.get("rewards")):
        yield from RewardSpec.check(first_use, ("rewards", i), reward)
    for key in ("verifier", "judge"):
        yield from VerifierSpec.check(first_use, (key,), tree.get(key))
    for i, stage in enumerate(names.stages):
        yield from check_member(AnyStage, names.in_stage(i, stage), ("stages", i), stage)


def _check_secrets(names: RecipeNames) -> Iterator[RecipeProblem]:
    """Check that no address has a secret in it, and that no trainer option is one, for checkpoints keep them."""
    for loc, value in walk(names.document.tree):
        if isinstance(value, str) and has_credentials(value):
            fix = "leave it out, and put a teacher's bearer token into the environment variable RLD_TEACHER_TOKEN"
            yield names.problem(loc, f" has a user, a password or a token in its address; {fix}")
        elif isinstance(value, str) and "trainer" in loc[:-1] and is_secret_name(loc[-1]):
            fix = "set the library's environment variable instead, such as HF_TOKEN or WANDB_API_KEY"
            yield names.problem(loc, f" is a secret, and trainer options are stored with each checkpoint; {fix}")


def _check_size(names: RecipeNames, loc: Loc, model: Any) -> Iterator[RecipeProblem]:
    """Check that a new model is not larger than any machine can hold."""
    match model:
        case {"new": str(kind), "config": dict(config)}:
            pass
        case _:
            return
    for key in _DEPTHS & config.keys():
        if isinstance(config[key], int) and config[key] > _MAX_LAYERS:
            yield names.problem((*loc, key), f" should be at most {_MAX_LAYERS:,}, not {config[key]:,}")
    size = parameters({"vocab_size": 1, **config, "model_type": kind}) or 0
    if size > _MAX_PARAMETERS:
        yield names.problem(loc, f": a model of {quantity(size)} parameters is larger than any machine can hold")


def _first_use_of_rewards(names: RecipeNames) -> int:
    """Return the index of the first stage that calls rewards, or the number of stages if none does."""
    kinds = list(map(_stage_class, names.stages))
    return next((i for i, kind in enumerate(kinds) if kind is not None and kind.uses_rewards), len(kinds))


def _check_chats(names: RecipeNames) -> Iterator[RecipeProblem]:
    """Check that no prompts have style chat if the recipe has a tokenizer of characters."""
    tree = names.document.tree
    owners = [((), tree), *((("skills", name), skill) for name, skill in items(tree.get("skills")))]
    for loc, owner in owners if isinstance(tree.get("tokenizer"), dict) else ():
        match owner:
            case {"prompts": {"style": "chat"}}:
                where = (*loc, "prompts", "style")
                yield names.problem(where, " cannot be chat: a tokenizer of characters has no chat template")


def _check_trainer(names: RecipeNames) -> Iterator[RecipeProblem]:
    """Check that each shared trainer option exists for the trainer of at least one stage."""
    kinds = [kind for kind in map(_stage_class, names.stages) if kind is not None and issubclass(kind, TrainingStage)]
    trainer_classes = [kind.trainer_class for kind in kinds]
    reserved = reserved_options.TRAINER | {key: fix for kind in kinds for key, fix in kind.reserved.items()}
    yield from check_trainer(names, ("trainer",), names.document.tree.get("trainer"), trainer_classes, reserved)


def _stage_class(stage: Mapping[Any, Any]) -> type[Stage] | None:
    kind = member_of(AnyStage, stage)
    return kind if kind is not None and issubclass(kind, Stage) else None
