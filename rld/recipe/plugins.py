"""Rewards, curricula and audits: a function or class that `use` names, and its `options`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.recipe.option_checks import check_use
from rld.utils.options import FrozenOptions


class RewardSpec(FrozenOptions):
    """One reward function and its weight in the sum."""

    use: str
    """A shipped reward as file:function, or your own as ./file.py:function."""
    weight: float = 1.0
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the function and its options."""
        yield from check_use("rewards", names, loc, raw)


class VerifierSpec(FrozenOptions):
    """A function with a reward's signature that gives 1 to a correct answer, and less to any other."""

    use: str
    """A shipped reward as file:function, or your own as ./file.py:function."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the function and its options."""
        yield from check_use("rewards", names, loc, raw)


class CurriculumSpec(FrozenOptions):
    """Which curriculum picks skill and level of the next prompt."""

    use: str = "fixed:Uniform"
    """A shipped curriculum as file:Class, or your own as ./file.py:Class."""
    options: dict[str, Any] = {}
    """Keyword arguments of the class."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the class and its options."""
        yield from check_use("curricula", names, loc, raw)


class AuditSpec(FrozenOptions):
    """A reward that is trusted, however slow, checks a share of what the first of the recipe's rewards calls right.

    Where it is set, it also decides in that one's place whether a teacher is right, and whether a protected skill is
    retained.
    """

    use: str
    """A shipped reward as file:function, or your own as ./file.py:function; it gives 1 to a correct answer."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""
    share: float = Field(0.1, gt=0, le=1)
    """Of the completions that are called right."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the function and its options."""
        yield from check_use("rewards", names, loc, raw)
