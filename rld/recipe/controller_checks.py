"""Check the names of skills and teachers in the options of controllers and of retention rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, items
from rld.types import SIGNALS
from rld.utils.suggestions import hint


def check_controller(names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
    """Check the names of teachers and skills in a controller's weights."""
    options = raw if isinstance(raw, dict) else {}
    for name, weight in items(options.get("teachers")):
        where = (*loc, "teachers", name)
        if name not in names.teachers:
            yield names.problem(where, f": no such teacher{hint(str(name), names.teachers)}")
        yield from names.value_per_skill(where, weight)
    for signal in SIGNALS:
        match options.get(signal):
            case {"start": start, "end": end}:
                yield from names.value_per_skill((*loc, signal, "start"), start)
                yield from names.value_per_skill((*loc, signal, "end"), end)
            case value:
                yield from names.value_per_skill((*loc, signal), value)


def check_retention(names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
    """Check the skills to protect, and that there is at least one."""
    if not isinstance(raw, dict):
        return
    yield from names.skill_list((*loc, "skills"), raw.get("skills"), names.skills)
    stage_skills = names.stage.get("skills")
    others = set(names.skills) - set(map(str, stage_skills)) if isinstance(stage_skills, list) else set()
    if raw.get("skills") is None and not others:
        fix = f"name those to protect in {names.label((*loc, 'skills'))}"
        yield names.problem(loc, f" protects the skills that the stage does not train, and it trains all; {fix}")
