"""What the result of one stage depends on, of all that a run depends on, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict

from rld.recipe.document import value_at, walk
from rld.recipe.schema import Recipe
from rld.recipe.stages.base import Stage, TrainingStage
from rld.utils.secrets import without_masked

FORMAT = 1
"""To be raised when rld computes other numbers from the same recipe, or stores results otherwise."""

Keys: TypeAlias = tuple[Any, ...]
"""The keys that lead to a value of a resolved recipe; stages go by their names."""

MODEL_KEYS = ("student", "teacher", "model", "models", "base", "adapter", "path", "prune", "tokenizer")
"""Keys of a recipe whose texts name models."""

_OF_ALL_STAGES = ("seed", "tokenizer", "prompts", "bad_rows", "max_new_tokens", "evaluation")
"""Keys of a recipe on which every stage depends, beside those of its judge, skills and models."""

_NO_NUMBERS = {"checkpoint_every", "evaluate_every", "timeout_seconds", "token_variable", "offload"}
"""Keys of stages and teachers on which no weight depends."""

_NO_NUMBERS_PREFIXES = ("logging_", "log_", "report_to", "run_name", "disable_tqdm", "hub_", "push_to_hub", "save_")
"""The first letters of options of trainers on which no weight depends."""


class StageInputs(BaseModel):
    """What a stage's result depends on.

    Attributes:
        seed: The stage's seed. None: it does not train.
        parts: The keys that lead to the parts of the resolved recipe, the stage itself among them.
        files: The user's code and data.
        models: Stored models, by their names in the recipe.
        stages: The earlier stages that it refers to.
        ends_by_scores: Whether the scores on the way can end it.
    """

    model_config = ConfigDict(frozen=True)

    seed: int | None
    parts: list[Keys]
    files: list[str] = []
    models: list[str] = []
    stages: list[str]
    ends_by_scores: bool = False

    def depends_on(self, keys: Keys) -> bool:
        """Tell whether the value to which `keys` lead is in a part of the recipe, or a part is in that value."""
        if keys[0] == "stages" and len(keys) > 2 and has_no_numbers(keys[2:], self.ends_by_scores):
            return False
        return any(keys[: len(part)] == part or part[: len(keys)] == keys for part in self.parts)


def has_no_numbers(keys: Keys, ends_by_scores: bool) -> bool:
    """Tell whether no weight depends on the option to which keys lead inside of a stage."""
    if ends_by_scores and keys == ("evaluate_every",):
        return False
    if keys[0] == "trainer":
        return len(keys) > 1 and str(keys[1]).startswith(_NO_NUMBERS_PREFIXES)
    is_teacher = keys[0] == "teachers" and len(keys) == 3
    return (len(keys) == 1 or is_teacher) and keys[-1] in _NO_NUMBERS


def by_stage_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe whose stages are a mapping from their names."""
    return {**recipe, "stages": {stage["name"]: stage for stage in recipe["stages"]}}


def stage_inputs(recipe: Recipe, stage: Stage) -> StageInputs:
    """Return what a stage depends on, without files and stored models.

    Each stage's model is scored on the held-out rows of all skills, so that it depends on all of them.
    """
    names = [other.name for other in recipe.stages]
    earlier = names[: names.index(stage.name)]
    options, specs = stage.model_dump(mode="json"), recipe.model_dump(mode="json")["models"]
    stages, models = _referred(options, earlier), _referred(options, [*specs])
    for name in models:  # grows: models may be made from others
        models += [other for other in _referred(specs[name], [*specs]) if other not in models]
    parts: list[Keys] = [(key,) for key in _OF_ALL_STAGES]
    parts += [_judge(recipe), *([("rewards",), ("verifier",)] if stage.uses_rewards else [])]
    skills = stage.skills_in_use(recipe.skills)
    parts += [("skills",)] if stage.makes_model else [("skills", skill) for skill in skills]
    parts += [("models", name) for name in models]
    inputs = StageInputs(seed=None, parts=[*parts, ("stages", stage.name)], stages=stages)
    if isinstance(stage, TrainingStage):
        changes = {"seed": recipe.stage_seed(stage.name), "ends_by_scores": stage.stop.uses_scores}
        inputs = inputs.model_copy(update=changes)
    return inputs


def _referred(tree: Any, names: list[str]) -> list[str]:
    """Return those of `names` that a part of a recipe refers to as models."""
    texts = [(keys, text) for keys, text in walk(tree) if isinstance(text, str)]
    return [name for name in names if any(text == name and _is_reference(keys) for keys, text in texts)]


def _is_reference(keys: Keys) -> bool:
    names = [key for key in keys if isinstance(key, str)]
    return bool(names) and names[-1] in MODEL_KEYS


def _judge(recipe: Recipe) -> Keys:
    """Return the keys that lead to what decides outside of training which answers are correct."""
    if recipe.judge is not None:
        return ("judge",)
    audited = [stage.name for stage in recipe.stages if stage.audit_in_use is not None]
    if audited:
        return ("stages", audited[-1], "audit")
    return ("verifier",) if recipe.verifier is not None else ("rewards", 0)


def values(recipe: Mapping[str, Any], needs: StageInputs) -> Iterator[Any]:
    """Yield the parts of a resolved recipe with their keys, without the options on which no weight depends."""
    tree = by_stage_name(recipe)
    for part in needs.parts:
        value = value_at(tree, part)
        is_stage = part[0] == "stages" and len(part) == 2
        yield list(part), _with_numbers(value, needs.ends_by_scores) if is_stage else value


def _with_numbers(tree: Any, ends_by_scores: bool, keys: Keys = ()) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    relevant = {key: value for key, value in tree.items() if not has_no_numbers((*keys, key), ends_by_scores)}
    return {key: _with_numbers(value, ends_by_scores, (*keys, key)) for key, value in relevant.items()}


def digest(tree: Any) -> str:
    """Return the hash of a tree of plain values, without masked secrets."""
    return hashlib.sha256(json.dumps(without_masked(tree), sort_keys=True).encode()).hexdigest()
