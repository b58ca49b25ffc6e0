"""The skills of a trainer, and checks that everything which names skills names those."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset

from rld.data.prompt_stream import PromptStream, skills_of
from rld.errors import DataError, RecipeError, TeacherError
from rld.teachers.teacher import Teacher
from rld.types import Row, skill_of
from rld.utils.suggestions import hint

_REWARD_ARGUMENTS = ("prompts", "completions")
"""Columns that TRL would hand to a reward twice."""


def trained_skills(
    skills: Sequence[str] | None, stream: PromptStream | None, rows: Any, eval_rows: Any, teachers: Sequence[Teacher]
) -> list[str]:
    """Return the skills of a trainer.

    Args:
        skills: Those that its arguments name. None: those of the training set.
        stream: The prompts in a curriculum's order. None: there is no curriculum.
        rows: The training set.
        eval_rows: The evaluation set, a mapping of several, or None.
        teachers: The teachers.

    Raises:
        RecipeError: a named skill has no rows.
        DataError: rows have a skill that is not named, or a column with the name of a reward's argument.
        TeacherError: a teacher's skills are no list, or one of them is none of these.
    """
    eval_sets = list(eval_rows.values()) if isinstance(eval_rows, dict) else [eval_rows]
    for name, dataset in [("train_dataset", rows), *(("eval_dataset", eval_set) for eval_set in eval_sets)]:
        if stream is None or name == "eval_dataset":
            _require_free_columns(name, dataset)
    trained, evaluated = skills_of(stream, rows), sorted({s for eval_set in eval_sets for s in _labels(eval_set) or ()})
    if skills is None:
        names = trained
    else:
        names = list(skills)
        _require_rows(names, [*trained, *evaluated] if stream is not None or _labels(rows) is not None else None)
    labels = trained if stream is not None else _labels(rows) or []
    _require_names("train_dataset", labels, names)
    _require_names("eval_dataset", evaluated, names)
    for teacher in teachers:
        _require_teacher_names(teacher, names)
    return names


def require_row_skills(option: str, rows: Iterable[Row], skills: Sequence[str]) -> None:
    """Check that rows have skills of a trainer.

    Raises:
        DataError: one has another.
    """
    _require_names(option, sorted({skill_of(row) for row in rows}), skills)


def _labels(dataset: Any) -> list[str] | None:
    """Return the skills in a data set's column; None where it has none, or would have to be read for it."""
    if not isinstance(dataset, Dataset) or "skill" not in dataset.column_names:
        return None
    return sorted({str(skill) for skill in dataset["skill"]})


def _require_rows(names: Sequence[str], labels: Sequence[str] | None) -> None:
    for name in names if labels is not None else ():
        if name not in (labels or ()):
            raise RecipeError(f"skills: no row has the skill {name!r}{hint(name, labels or ())}")


def _require_names(option: str, labels: Sequence[str], skills: Sequence[str]) -> None:
    unknown = [label for label in labels if label not in skills]
    if unknown:
        near = hint(unknown[0], skills)
        raise DataError(f"{option}: rows have the skill {unknown[0]!r}, which is none of the skills that train{near}")


def _require_free_columns(option: str, dataset: Any) -> None:
    conflicts = [name for name in _REWARD_ARGUMENTS if name in (getattr(dataset, "column_names", None) or ())]
    if conflicts:
        raise DataError(f"{option} has a column {conflicts[0]!r}, which is an argument of rewards; rename the column")


def _require_teacher_names(teacher: Teacher, skills: Sequence[str]) -> None:
    if teacher.skills is not None and (isinstance(teacher.skills, str) or not teacher.skills):
        fix = f"skills should be a list of names, not {teacher.skills!r}; leave it out to mean all"
        raise TeacherError(f"teacher '{teacher.name}': {fix}")
    for option, names in (("skills", teacher.skills), ("verified", teacher.verified)):
        for name in names or ():
            if name not in skills:
                near = hint(name, skills)
                raise TeacherError(f"teacher '{teacher.name}': {option} names {name!r}, which is no skill here{near}")
