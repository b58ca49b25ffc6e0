"""The options of rewards, verifiers, curricula and audits: `use` names a function or class, `options` its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from rld.errors import CurriculumError
from rld.recipe import registry
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.recipe.option_checks import check_use
from rld.utils.options import FrozenOptions
from rld.utils.user_calls import REWARD_SECONDS


class _RewardCall(FrozenOptions):
    use: str
    """A shipped reward as file:function, one of TRL's as trl:name, or your own as ./file.py:function."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""
    success_at: float | None = None
    """The least value of a correct answer, in the function's own scale. None: 1, and all its values are from 0 to 1 if
    it decides which answers are correct."""
    timeout_seconds: float = Field(REWARD_SECONDS, gt=0)
    """Seconds that one call, for all completions of a rollout, may take; after that the run stops."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the function and its options."""
        yield from check_use("rewards", names, loc, raw)


class RewardSpec(_RewardCall):
    """A reward function and its weight in the sum of rewards."""

    weight: float = 1.0
    """Weight of the reward in the sum."""

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also that only a reward that decides which answers are correct has a threshold."""
        yield from super().check(names, loc, raw)
        if isinstance(raw, dict) and raw.get("success_at") is not None:
            if names.document.tree.get("verifier") is not None:
                yield names.problem((*loc, "success_at"), " has no effect beside a verifier; set it there")
            elif loc[-1] != 0:
                yield names.problem((*loc, "success_at"), " has no effect: the first of the rewards is the verifier")


class VerifierSpec(_RewardCall):
    """A function with the signature of a reward that returns 1 for a correct answer and less for any other."""

    @classmethod
    def of(cls, call: _RewardCall) -> VerifierSpec:
        """Return the function of a reward or of an audit as a verifier."""
        return cls(**{name: getattr(call, name) for name in cls.model_fields})


class AuditSpec(_RewardCall):
    """A more reliable reward, possibly slow, that checks a share of the answers that the verifier accepts as correct.

    If it is set, it also replaces the verifier in deciding whether a teacher's answer is correct, and whether a
    protected skill is retained.
    """

    share: float = Field(0.1, gt=0, le=1)
    """Share of the completions accepted by the verifier that the audit checks."""


class CurriculumSpec(FrozenOptions):
    """The curriculum, which selects the skill and the level of the next prompt."""

    use: str = "fixed:Uniform"
    """A shipped curriculum as file:Class, or your own as ./file.py:Class."""
    options: dict[str, Any] = {}
    """Keyword arguments of the class."""
    levels_by: Literal["teacher_loss"] | None = None
    """What the levels are. `teacher_loss`: before the first step, the rows of each file are put into ten levels of
    equal size by a teacher's loss on the gold answer, in nats per byte, and the levels of each generator into their
    order by it. Skills without a teacher keep their own levels. None: all skills do."""

    @property
    def described(self) -> str:
        """What `rld check` shows."""
        return self.use if self.levels_by is None else f"{self.use}, levels by the teacher's loss"

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the class and its options; a shipped one is built, for it takes no library."""
        problems = list(check_use("curricula", names, loc, raw))
        yield from problems
        if isinstance(raw, dict) and raw.get("levels_by") is not None:
            yield from cls._check_levels_by(names, (*loc, "levels_by"))
        use, options = (raw.get("use", cls().use), raw.get("options", {})) if isinstance(raw, dict) else (None, None)
        if problems or not isinstance(use, str) or not isinstance(options, dict):
            return
        if registry.locate("curricula", use, names.folder).shipped:
            levels = {skill: names.num_levels(skill) or 1 for skill in names.trained_skills if isinstance(skill, str)}
            try:
                registry.load("curricula", use, names.folder)(levels, **options)
            except CurriculumError as error:
                yield names.problem((*loc, "options"), f": {error}")
            except (TypeError, ValueError, AttributeError) as error:
                yield names.problem((*loc, "options"), f": {use} refuses them: {error}")

    @staticmethod
    def _check_levels_by(names: RecipeNames, loc: Loc) -> Iterator[RecipeProblem]:
        if not names.teachers:
            yield names.problem(loc, " needs teachers, and this stage has none")
        for key, reason in (
            ("target", "its rows are left out of those that are trained on"),
            ("cache", "it is filled before rows are ordered"),
        ):
            if names.stage.get(key) is not None:
                yield names.problem(loc, f" goes without {key}: {reason}")
