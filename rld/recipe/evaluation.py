"""The options of evaluators: what models are scored by. To add one, write its class here and put it in `AnyEvaluator`.

An evaluator but for held-out rows is built by `build` of the module of its kind in `rld/evaluation/`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rld.recipe import registry
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.utils.options import FrozenOptions


class HeldOut(FrozenOptions):
    """Scores on the held-out rows of each skill, which the skill's `scores` name."""

    kind: Literal["held_out"]


class LmEval(FrozenOptions):
    """Scores on tasks of lm-evaluation-harness, the package lm-eval, beside those of the skills.

    A task's main score is the first of its metrics that is between 0 and 1 and better where it is larger. Teachers that
    are on servers or in a cache have none.
    """

    kind: Literal["lm_eval"]
    tasks: list[str] = Field(min_length=1)
    """Names of tasks or groups, as lm-eval knows them."""
    include_path: str | None = None
    """A folder with tasks of your own, relative to the recipe: YAML files as lm-eval reads them. In these, paths of
    data are relative to the folder in which rld is started."""
    limit: int | None = Field(None, ge=1)
    """Rows per task. None: all."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples in front of each question. None: as each task says."""
    batch_size: int = Field(8, ge=1)
    """Rows per forward."""

    @field_validator("tasks")
    @classmethod
    def _tasks_are_different(cls, tasks: list[str]) -> list[str]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("a task is named twice")
        return tasks

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check that lm-eval is installed, and that the folder of own tasks exists."""
        if importlib.util.find_spec("lm_eval") is None:
            fix = "install it with: pip install -e '.[lm_eval]', in a clone of rld"
            yield names.problem((*loc, "kind"), f": lm_eval needs the package lm-eval; {fix}")
        path = raw.get("include_path")
        place = registry.find_path(path, names.folder) if isinstance(path, str) else None
        if isinstance(path, str) and (place is None or not place.is_dir()):
            yield names.problem((*loc, "include_path"), f": there is no folder {path}")


AnyEvaluator = Annotated[HeldOut | LmEval, Field(discriminator="kind")]
