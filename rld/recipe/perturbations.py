"""Options of experiments with controllers: deliberate changes while a stage trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, check_member, items
from rld.recipe.option_checks import check_use
from rld.utils.options import FrozenOptions, union_by_key
from rld.utils.suggestions import hint


class _Perturbation(FrozenOptions):
    at: int = Field(ge=0)
    """Number of optimiser steps after which the change takes effect. 0: from the start."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check that the change takes effect before the stage ends."""
        at, steps = raw.get("at"), names.stage.get("steps")
        if isinstance(at, int) and isinstance(steps, int) and at >= steps:
            yield names.problem((*loc, "at"), f" is {at}, but the stage ends after {steps} steps")


class TeacherChange(_Perturbation):
    """The weights of a teacher are replaced, or the teacher is removed."""

    teacher: str
    """Name of the teacher."""
    becomes: str | None
    """A name in `models`, an earlier stage, a hub id or a folder, with the same tokenizer. null: it is removed."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the teacher's name, and that this kind of teacher can be replaced."""
        yield from super().check(names, loc, raw)
        yield from _check_name(names, (*loc, "teacher"), raw.get("teacher"), names.teachers, "teacher of this stage")
        becomes, where, stage = raw.get("becomes"), (*loc, "becomes"), names.stage
        yield from names.reference(where, becomes)
        if becomes is None:
            return
        spec = dict(items(stage.get("teachers"))).get(str(raw.get("teacher")))
        is_served = isinstance(spec, dict) and "url" in spec
        if is_served or stage.get("cache") is not None:
            place = "on a server" if is_served else "with a cache"
            yield names.problem(where, f": a teacher {place} can't become another; null lets it leave")
        match stage.get("signals"):
            case {"feature": dict()}:
                yield names.problem(where, ": a teacher can't change with a feature signal")


class RewardChange(_Perturbation):
    """A reward is replaced by another function, gets another weight, or gives false results at random."""

    reward: str
    """The `use` of one of the recipe's rewards."""
    becomes: str | None = None
    """A shipped reward as file:function, or your own as ./file.py:function. null: no change."""
    options: dict[str, Any] = {}
    """Keyword arguments of the new function."""
    weight: float | None = None
    """The new weight. null: no change."""
    noise: float | None = Field(None, ge=0, le=1)
    """Share of its results r that are replaced by 1 - r. null: no change."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the reward's name, the new function and its options."""
        yield from super().check(names, loc, raw)
        yield from _check_name(names, (*loc, "reward"), raw.get("reward"), names.rewards, "reward")
        yield from check_use("rewards", names, loc, raw, "becomes")
        for _, reward in items(names.document.tree.get("rewards")) if raw.get("noise") is not None else ():
            if isinstance(reward, dict) and reward.get("use") == raw.get("reward") and reward.get("success_at"):
                yield names.problem((*loc, "noise"), " replaces r by 1 - r, so it needs a reward without success_at")


class SkillJoins(_Perturbation):
    """A skill has no prompts until this step, and then has prompts. Prompts are drawn up to two updates ahead."""

    joins: str
    """Name of the skill."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the skill."""
        yield from super().check(names, loc, raw)
        yield from _check_skill(names, (*loc, "joins"), raw.get("joins"))


class SkillLeaves(_Perturbation):
    """A skill has no prompts from this step on. Prompts are drawn up to two updates ahead."""

    leaves: str
    """Name of the skill."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the skill."""
        yield from super().check(names, loc, raw)
        yield from _check_skill(names, (*loc, "leaves"), raw.get("leaves"))


class LevelShift(_Perturbation):
    """Levels of a skill are replaced; the curriculum is not informed. Prompts are drawn up to two updates ahead."""

    skill: str
    """Name of the skill."""
    levels: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """Replacements, numbered from 0, of the first, second and further levels; the last also of all later levels."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the skill and its new levels."""
        yield from super().check(names, loc, raw)
        skill, levels = raw.get("skill"), raw.get("levels")
        yield from _check_skill(names, (*loc, "skill"), skill)
        last = (names.num_levels(skill) or 0) - 1 if isinstance(skill, str) else -1
        for i, level in items(levels) if last >= 0 else ():
            if isinstance(level, int) and level > last:
                yield names.problem((*loc, "levels", i), f" is {level}, but the last level of {skill!r} is {last}")


AnyPerturbation = Annotated[
    Annotated[TeacherChange, Tag("TeacherChange")]
    | Annotated[RewardChange, Tag("RewardChange")]
    | Annotated[SkillJoins, Tag("SkillJoins")]
    | Annotated[SkillLeaves, Tag("SkillLeaves")]
    | Annotated[LevelShift, Tag("LevelShift")],
    Discriminator(
        union_by_key(
            teacher=TeacherChange, reward=RewardChange, joins=SkillJoins, leaves=SkillLeaves, skill=LevelShift
        ),
        custom_error_type="unknown_kind",
        custom_error_message="should have one of the keys 'teacher', 'reward', 'joins', 'leaves' and 'skill'",
    ),
]


class ExperimentSpec(FrozenOptions):
    """Deliberate changes to a stage, to study how controllers respond; not meant for ordinary training."""

    perturbations: list[AnyPerturbation] = []
    """Changes while the stage trains, in any order."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check each perturbation."""
        for i, perturbation in items(raw.get("perturbations")) if isinstance(raw, dict) else ():
            yield from check_member(AnyPerturbation, names, (*loc, "perturbations", i), perturbation)


def _check_skill(names: RecipeNames, loc: Loc, skill: Any) -> Iterator[RecipeProblem]:
    yield from _check_name(names, loc, skill, names.trained_skills, "skill of this stage")


def _check_name(names: RecipeNames, loc: Loc, name: Any, choices: list[str], kind: str) -> Iterator[RecipeProblem]:
    """Check that `name` is one of `choices`."""
    if isinstance(name, str) and name not in choices:
        yield names.problem(loc, f": {name!r} is no {kind}{hint(name, choices)}")
