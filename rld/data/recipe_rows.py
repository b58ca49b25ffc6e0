"""The rows of all skills of a recipe, which hold out no question that another one trains on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

from rld.data.generators import item_source
from rld.data.listing import first_few
from rld.data.skill_rows import SkillRows
from rld.recipe.schema import Recipe
from rld.types import Row

_MOST_WARNED = 5
"""Rows that a warning names."""


def skill_rows(
    recipe: Recipe,
    folder: Path,
    accepts: Callable[[Row], bool] = lambda row: True,
    cut: Callable[[str, str], list[str]] = lambda skill, text: [text],
) -> dict[str, SkillRows]:
    """Return the row source of each skill of a recipe.

    Args:
        recipe: The recipe.
        folder: The recipe's folder.
        accepts: Whether a row may be used; rows that may not are left out.
        cut: Returns the pieces of a document of a skill.

    Raises:
        DataError: rows that cannot be read.
        LibraryError: a generator that does not exist.
    """
    held_out_questions: set[str] = set()
    sources = {
        name: SkillRows(
            name,
            item_source(name, skill, folder, skips_bad_rows=recipe.bad_rows == "skip"),
            skill.held_out if isinstance(skill.held_out, (int, float)) else 0,
            recipe.skill_prompts(name),
            seed=recipe.seed,
            held_out_questions=held_out_questions,
            accepts=accepts,
            cut=functools.partial(cut, name),
        )
        for name, skill in recipe.skills.items()
    }
    for source in sources.values():  # skills may share questions, so all hold rows out before any draws training rows
        source.held_out()
    for source in sources.values():
        _tell_of_repeated(source.skill, source.repeated())
    return sources


def _tell_of_repeated(skill: str, places: list[str]) -> None:
    if places:
        rows = "1 row is" if len(places) == 1 else f"{len(places)} rows are"
        text = f"{rows} neither trained on nor scored, because a held-out row has the same question: "
        text += first_few(places, _MOST_WARNED)
        warnings.warn(f"skill '{skill}': {text}", stacklevel=1)  # one place, so that it is shown once
