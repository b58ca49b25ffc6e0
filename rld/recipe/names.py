"""The names that the parts of a recipe may refer to, and the problems of a name that does not exist.

These checks read the recipe's tree before validation, so they find mistakes in a recipe whose other parts the schema
rejects; they skip values of a wrong type, which the schema reports. Nothing is imported or loaded.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rld.data.row_kinds import default_rewards
from rld.recipe import registry
from rld.recipe.document import Loc, RecipeDocument, RecipeProblem
from rld.utils.model_files import adapter_folder_problem, model_folder_problem
from rld.utils.options import member_of
from rld.utils.suggestions import hint, nearest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class RecipeNames:
    """The names that a part of a recipe may refer to, even if other parts of the recipe have mistakes.

    Attributes:
        document: The recipe.
        index: How many stages have run when the part is used.
        stage: The stage that the part belongs to, as written; empty for a part of the whole recipe.
    """

    document: RecipeDocument
    index: int = 0
    stage: Mapping[Any, Any] = field(default_factory=dict)

    def in_stage(self, index: int, stage: Mapping[Any, Any]) -> RecipeNames:
        """Return the names that a part of the stage at `index` may refer to."""
        return replace(self, index=index, stage=stage)

    # -- names -------------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The recipe's folder."""
        return self.document.folder

    @property
    def models(self) -> list[str]:
        return keys(self.document.tree.get("models"))

    @property
    def skills(self) -> list[str]:
        return keys(self.document.tree.get("skills"))

    @property
    def rewards(self) -> list[str]:
        """The recipe's rewards, as their `use` names them."""
        rewards = self.document.tree.get("rewards")
        if rewards is None:
            skills = [skill for _, skill in items(self.document.tree.get("skills")) if isinstance(skill, dict)]
            return default_rewards(skill.get("kind") for skill in skills)
        return [str(reward.get("use")) for _, reward in items(rewards) if isinstance(reward, dict)]

    @functools.cached_property
    def stages(self) -> list[Mapping[Any, Any]]:
        """All stages as written."""
        return [stage if isinstance(stage, dict) else {} for _, stage in items(self.document.tree.get("stages"))]

    @property
    def stage_names(self) -> list[Any]:
        return [stage.get("name") for stage in self.stages]

    @property
    def teachers(self) -> list[str]:
        """The teachers of the stage."""
        return keys(self.stage.get("teachers"))

    @property
    def trained_skills(self) -> list[str]:
        """The skills that the stage trains."""
        skills = self.stage.get("skills")
        return [skill for skill in skills if isinstance(skill, str)] if isinstance(skills, list) else self.skills

    def num_levels(self, skill: str) -> int | None:
        """Return the number of levels of a skill; None where the recipe does not specify it."""
        spec = dict(items(self.document.tree.get("skills"))).get(skill)
        if not isinstance(spec, dict) or "file" in spec or "dataset" in spec:
            return None
        levels = spec.get("levels", [{}])
        return len(levels) if isinstance(levels, list) else None

    def has_held_out_rows(self, skill: str) -> bool:
        """Return whether a skill has held-out rows; one that does not exist does."""
        spec = dict(items(self.document.tree.get("skills"))).get(skill)
        return not (isinstance(spec, dict) and spec.get("held_out") == 0)

    # -- problems ----------------------------------------------------------------------------------------------------

    def label(self, loc: Loc) -> str:
        """Return a location as written on the command line."""
        return self.document.label(loc)

    def problem(self, loc: Loc, text: str) -> RecipeProblem:
        """Return a problem whose text begins with its location."""
        return RecipeProblem(loc, f"{self.label(loc)}{text}")

    def weights(self, loc: Loc, name: str, names: list[str], takes_adapters: bool = False) -> Iterator[RecipeProblem]:
        """Check a name of model weights: one of `names`, a folder or a hub id; with `takes_adapters`, of an adapter."""
        path = registry.find_path(name, self.folder)
        if name in names:
            return
        if path is not None and path.is_dir():
            is_adapter = takes_adapters and registry.is_adapter(name, self.folder)
            problem = adapter_folder_problem(path) if is_adapter else model_folder_problem(path)
            if problem is not None:
                yield self.problem(loc, f": {name}: {problem}")
        elif path is not None:
            yield self.problem(loc, f": {name} is a file; give the folder of a model")
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            yield self.problem(loc, f": there is no folder {name}{_nearest_folder(self.folder / name, name)}")
        elif not is_hub_id(name):
            near = hint(name, names) or "; give a name in models, an earlier stage, a hub id (owner/name) or a folder"
            yield self.problem(loc, f": there is no model {name!r}{near}")

    def reference(self, loc: Loc, name: Any, takes_adapters: bool = False) -> Iterator[RecipeProblem]:
        """Check the name of a model, or of a stage that runs before this one; with `takes_adapters`, of an adapter."""
        if not isinstance(name, str):
            return
        earlier, later = self.stage_names[: self.index], self.stage_names[self.index :]
        if name in later and name not in self.models + earlier:
            yield self.problem(loc, f": stage {name!r} has not run by then; refer to an earlier one")
        else:
            names = self.models + [stage for stage in earlier if isinstance(stage, str)]
            yield from self.weights(loc, name, names, takes_adapters)

    def skill_list(self, loc: Loc, value: Any, names: list[str]) -> Iterator[RecipeProblem]:
        """Check a list of skills, each one of `names`."""
        if value == []:
            yield self.problem(loc, " names no skill; leave it out to mean all")
        for i, name in enumerate(value if isinstance(value, list) else ()):
            if isinstance(name, str) and name not in names:
                fix = " of this stage" if name in self.skills else hint(name, names)
                yield RecipeProblem((*loc, i), f"{self.label(loc)}: {name!r} is no skill{fix}")

    def value_per_skill(self, loc: Loc, values: Any) -> Iterator[RecipeProblem]:
        """Check that a mapping from skill to value has exactly the stage's skills as keys."""
        if not isinstance(values, dict):
            return
        skills = self.trained_skills
        for name in keys(values):
            if name not in skills:
                text = f"{self.label(loc)}: {name!r} is no skill of this stage{hint(name, skills)}"
                yield RecipeProblem((*loc, name), text)
        for skill in skills:
            if skill not in values:
                yield self.problem(loc, f" has no value for skill {skill!r}")

    def tokenizer_file(self, name: Any) -> Path | None:
        """Return the tokenizer file of the model that `name` refers to; a stage's is that of its first model."""
        for stage in reversed(self.stages):
            name = _origin(stage) if name == stage.get("name") else name
        models = dict(items(self.document.tree.get("models")))
        match models.get(name, name) if isinstance(name, str) else None:
            case str(path) | {"path": str(path)}:
                if registry.find_path(path, self.folder) is not None or is_hub_id(path):
                    return registry.model_file(path, "tokenizer.json", self.folder)
        return None


def _origin(stage: Mapping[Any, Any]) -> Any:
    """Return the model from which that of a stage is made, as `Stage.origin` does, of a stage as written."""
    models = stage.get("models")
    student = stage.get("student") or stage.get("base") or stage.get("model")
    return student or (models[0] if isinstance(models, list) and models else None)


def check_member(union: Any, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
    """Yield the problems that the union member selected by a raw value finds in that value."""
    check = getattr(member_of(union, raw), "check", None)
    if check is not None:
        yield from check(names, loc, raw)


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a hub id."""
    return _HUB_ID.fullmatch(name) is not None


def keys(value: Any) -> list[str]:
    """Return the keys of a mapping that are text; an empty list for any other value."""
    return [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []


def items(value: Any) -> list[tuple[Any, Any]]:
    """Return the keys or indices of a mapping or list with their values; an empty list for any other value."""
    return list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []


def _nearest_folder(path: Path, name: str) -> str:
    """Return a suggestion for a folder that does not exist, from those beside it, or ""."""
    parent = path.parent
    beside = [*parent.iterdir()] if os.path.isdir(parent) and os.access(parent, os.R_OK) else []
    near = nearest(path.name, [folder.name for folder in beside if folder.is_dir()])
    return "" if near is None else f"; did you mean {os.path.join(os.path.dirname(name), near)!r}?"
