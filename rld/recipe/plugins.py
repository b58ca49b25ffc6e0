"""The options of rewards, verifiers, curricula and audits: `use` names a function or class, `options` its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.recipe.option_checks import check_use
from rld.utils.options import FrozenOptions


class RewardSpec(FrozenOptions):
    """A reward function and its weight in the sum of rewards."""

    use: str
    """A shipped reward as file:function, or your own as ./file.py:function."""
    weight: float = 1.0
    """Weight of the reward in the sum."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the function and its options."""
        yield from check_use("rewards", names, loc, raw)


class VerifierSpec(FrozenOptions):
    """A function with the signature of a reward that returns 1 for a correct answer and less for any other."""

    use: str
    """A shipped reward as file:function, or your own as ./file.py:function."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the function and its options."""
        yield from check_use("rewards", names, loc, raw)


class CurriculumSpec(FrozenOptions):
    """The curriculum, which selects the skill and the level of the next prompt."""

    use: str = "fixed:Uniform"
    """A shipped curriculum as file:Class, or your own as ./file.py:Class."""
    options: dict[str, Any] = {}
    """Keyword arguments of the class."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the class and its options."""
        yield from check_use("curricula", names, loc, raw)


class AuditSpec(FrozenOptions):
    """A more reliable reward, possibly slow, that checks a share of the answers that the verifier accepts as correct.

    If it is set, it also replaces the verifier in deciding whether a teacher's answer is correct, and whether a
    protected skill is retained.
    """

    use: str
    """A shipped reward as file:function, or your own as ./file.py:function. It returns 1 for a correct answer."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""
    share: float = Field(0.1, gt=0, le=1)
    """Share of the completions accepted by the verifier that the audit checks."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the function and its options."""
        yield from check_use("rewards", names, loc, raw)
