"""Build the curricula and rewards that a recipe names, and try them once, so that mistakes show before a stage trains.

No tensor library is imported, beside those that the user's own files import.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rld.data.ordered_rows import OrderedRows
from rld.data.skill_rows import SkillRows
from rld.errors import CurriculumError, RldError
from rld.recipe import registry
from rld.recipe.schema import Recipe
from rld.recipe.stages.distill import Distill
from rld.types import Curriculum, Task
from rld.utils.user_calls import CALL_SECONDS, action, description, user_code

_MOST_DRAWN = 20_000
"""Prompts of a stage that are drawn beforehand at most: 0.1 s, and enough for levels of any curriculum to open."""


def load_curriculum(stage: Distill, num_levels: Mapping[str, int], source: Path) -> Curriculum:
    """Return a stage's curriculum.

    Args:
        stage: The stage.
        num_levels: The number of levels of each skill that it trains.
        source: The recipe's file.

    Raises:
        CurriculumError: it refuses its options.
        LibraryError: there is no such class.
    """
    make = registry.load("curricula", stage.curriculum.use, source.parent)
    try:
        with user_code(CALL_SECONDS):
            curriculum: Curriculum = make(dict(num_levels), **stage.curriculum.options)
    except RldError:
        raise
    except Exception as error:
        raise CurriculumError(f"curriculum {stage.curriculum.use}: building it {description(error)}") from error
    return curriculum


def try_curriculum(stage: Distill, num_levels: Mapping[str, int], source: Path) -> None:
    """Have a stage's curriculum pick a task, observe it and hand over its state, on an instance of its own.

    Raises:
        CurriculumError: a method raises or returns something else than it should.
        LibraryError: there is no such class.
    """
    curriculum = load_curriculum(stage, num_levels, source)
    place = f"curriculum {stage.curriculum.use}"
    if stage.curriculum.levels_by is not None and max(num_levels.values()) == 1:
        raise CurriculumError(f"{place}: levels_by orders rows, and no skill of stage '{stage.name}' has two to order")
    if stage.target is not None and not _follows(curriculum, list(num_levels)):
        raise CurriculumError(
            f"{place}: stage '{stage.name}' has a target, for which prompts are shared out, and this curriculum does "
            "not follow; use fixed:Uniform without weights, or another one with a method allocate"
        )
    try:
        with user_code(CALL_SECONDS):
            task = curriculum.next(random.Random(0))
        match task:
            case (str(skill), int(level)) if skill in num_levels and 0 <= level < num_levels[skill]:
                pass
            case _:
                raise CurriculumError(f"{place}: next() returned {task!r:.80}, not a skill and one of its levels")
        with user_code(CALL_SECONDS):
            curriculum.observe(Task(skill, level), 0, 1)
            for value in curriculum.metrics().values():
                float(value)
            curriculum.load_state_dict(json.loads(json.dumps(curriculum.state_dict())))
    except RldError:
        raise
    except Exception as error:
        raise CurriculumError(f"{place}: trying it {description(error)}") from error


def _follows(curriculum: Curriculum, skills: Sequence[str]) -> bool:
    """Whether a curriculum draws skills in the shares that a controller allocates."""
    if not hasattr(curriculum, "allocate"):
        return False
    with user_code(CALL_SECONDS):
        for sole_skill in skills:
            curriculum.allocate({skill: float(skill == sole_skill) for skill in skills})
            if any(curriculum.next(random.Random(i))[0] != sole_skill for i in range(8)):
                return False
        curriculum.allocate(None)
    return True


def rows_in_levels(stage: Distill, skill: str, rows: SkillRows) -> SkillRows | OrderedRows:
    """Return the rows of a skill with the levels that a stage's curriculum draws from.

    They are put into levels by a teacher's loss where the stage asks for that and the skill has a teacher, and have
    their own ones elsewhere.
    """
    has_teacher = any(spec.skills is None or skill in spec.skills for spec in stage.teachers.values())
    return OrderedRows(rows) if stage.curriculum.levels_by is not None and has_teacher else rows


def level_cautions(recipe: Recipe, sources: Mapping[str, SkillRows], source: Path) -> Iterator[str]:
    """Yield a sentence for each skill with levels that a stage's curriculum does not reach within its steps.

    The curriculum draws the stage's prompts, and hears that every completion of them is correct.

    Args:
        recipe: The recipe.
        sources: The rows of each skill.
        source: The recipe's file.
    """
    for stage in recipe.stages:
        if not isinstance(stage, Distill) or stage.learns_labels or stage.steps * stage.rollout.prompts > _MOST_DRAWN:
            continue
        skills = stage.skills_in_use(recipe.skills)
        num_levels = {skill: rows_in_levels(stage, skill, sources[skill]).num_levels for skill in skills}
        place = recipe.place("stages", stage.name, "curriculum")
        try:
            highest = _highest_levels(stage, num_levels, source)
        except Exception as error:
            yield f"{place}: the curriculum {action(error)} when it drew the prompts of the whole stage"
            continue
        for skill, level in highest.items():
            if level < num_levels[skill] - 1:
                yield (
                    f"{place}: the stage draws level {level} of skill '{skill}' at most, of 0 to "
                    f"{num_levels[skill] - 1}, even if all answers are correct; give it more steps, or the curriculum "
                    "other options"
                )


def _highest_levels(stage: Distill, num_levels: Mapping[str, int], source: Path) -> dict[str, int]:
    """Return the highest level of each skill that a stage's curriculum draws if all completions are correct."""
    curriculum, rng = load_curriculum(stage, num_levels, source), random.Random(0)
    num_completions = stage.rollout.num_completions(())
    highest = dict.fromkeys(num_levels, 0)
    with user_code(CALL_SECONDS):
        for _ in range(stage.steps):
            tasks = [Task(*curriculum.next(rng)) for _ in range(stage.rollout.prompts)]
            for task in tasks:
                highest[task.skill] = max(highest[task.skill], task.level)
                curriculum.observe(task, num_completions, num_completions)
    return highest
