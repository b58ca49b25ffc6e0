"""Perturbations: what changes on purpose while a stage trains, to see how a controller reacts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from rld.utils.options import FrozenOptions, union_by_key


class _Change(FrozenOptions):
    at: int = Field(ge=0)
    """Optimiser steps after which it happens; 0: from the start."""


class TeacherChange(_Change):
    """A teacher gets other weights, or leaves."""

    teacher: str
    becomes: str | None
    """A name in `models`, an earlier stage, a hub id or a folder, with the same tokenizer. null: it leaves for good."""


class RewardChange(_Change):
    """A reward starts to pay for something else, to count otherwise, or to err."""

    reward: str
    """One of the recipe's rewards, as its `use` names it."""
    becomes: str | None = None
    """A shipped reward as file:function, or your own as ./file.py:function. null: it stays."""
    options: dict[str, Any] = {}
    """Keyword arguments of what it becomes."""
    weight: float | None = None
    """Its new weight. null: it stays."""
    noise: float | None = Field(None, ge=0, le=1)
    """Share of its verdicts r that are turned round, to 1 - r. null: as before."""


class SkillJoins(_Change):
    """A skill is not asked before this step, and is from then on. Prompts are drawn up to two updates ahead."""

    joins: str
    """The skill."""


class SkillLeaves(_Change):
    """A skill is no longer asked. Prompts are drawn up to two updates ahead."""

    leaves: str
    """The skill."""


class LevelShift(_Change):
    """A skill becomes easier or harder, unseen by the curriculum. Prompts are drawn up to two updates ahead."""

    skill: str
    levels: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """What takes the place of its first, second and further levels, counted from 0; the last also of all beyond."""


AnyChange = Annotated[
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
