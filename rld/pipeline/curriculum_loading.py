"""Build the curricula and rewards that a recipe names, and try them once, so that mistakes show before a stage trains.

No tensor library is imported, beside those that the user's own files import.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from rld.errors import CurriculumError, RldError
from rld.recipe import registry
from rld.recipe.stages.distill import Distill
from rld.types import Curriculum, Task
from rld.utils.user_calls import CALL_SECONDS, description, user_code


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
