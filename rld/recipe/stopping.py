"""The rules that end a training stage before its last step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, keys
from rld.utils.options import FrozenOptions
from rld.utils.suggestions import hint

BUDGETS = {"max_flops": "FLOPs", "max_tokens": "tokens", "max_seconds": "seconds"}
"""The rules that are budgets, which the learning-rate schedule follows, and their units."""

_BY_SCORES = ("score", "plateau", "teacher_surpassed")
"""The rules that need scores while the stage trains."""


class Plateau(FrozenOptions):
    """Ends a stage whose scores rise no more."""

    scorings: int = Field(5, gt=0)
    """Scorings in a row, `evaluate_every` steps apart, without a gain. The first scoring on the way is what they are
    compared with; the score before the first update does not count."""
    gain: float = Field(0.005, ge=0)
    """A gain is a mean score over the stage's skills that is more than this above the highest one before."""


class StoppingRules(FrozenOptions):
    """When a stage ends before its last step: after the step in which the first of these rules is met.

    The learning rate, and whatever else changes over a stage, follow the largest share of `steps` or of a budget that
    is used, so that a rate that falls to 0 is 0 where the budget ends. Warm-up is counted in steps.
    """

    max_flops: float | None = Field(None, gt=0)
    """Budget of FLOPs of the stage, including those of teachers, gate and probes."""
    max_tokens: int | None = Field(None, gt=0)
    """Budget of tokens that the student reads in its updates, prompts included and padding not; a prompt that
    completions share in a forward counts once."""
    max_seconds: float | None = Field(None, gt=0)
    """Budget of seconds from the first step on, scorings and checkpoints included; time between a stop and its
    resumption, and steps that are lost with it, do not count. Such a stage is not the same twice."""
    score: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Held-out scores from 0 to 1, by skill, all of which the student has to reach."""
    plateau: Plateau | None = None
    """A plateau of the held-out scores. None: no such rule."""
    teacher_surpassed: bool = False
    """Whether the stage ends when the student's held-out score is above that of every teacher, on each skill of the
    stage; on a skill of which a teacher answers all rows correctly, when the student does so too."""

    @property
    def uses_scores(self) -> bool:
        """Whether a rule needs scores while the stage trains."""
        return bool(self.rules_of_scores)

    @property
    def rules_of_scores(self) -> list[str]:
        """The rules that are set and need scores while the stage trains."""
        return [name for name in _BY_SCORES if getattr(self, name)]

    def scorings_needed(self, rule: str) -> int:
        """Return after how many scorings on the way a rule of scores can be met at the earliest."""
        return 1 + (self.plateau.scorings if rule == "plateau" and self.plateau is not None else 0)

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that are set, by the name of their rule."""
        limits = {name: getattr(self, name) for name in BUDGETS}
        return {name: limit for name, limit in limits.items() if limit is not None}

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check the skills, and that what a rule needs is measured."""
        if not isinstance(raw, dict):
            return
        for skill in keys(raw.get("score")):
            if skill not in names.skills:
                yield names.problem((*loc, "score", skill), f": {skill!r} is no skill{hint(skill, names.skills)}")
            elif not names.has_held_out_rows(skill):
                text = f": skill {skill!r} has no held-out rows (held_out: 0)"
                yield names.problem((*loc, "score", skill), text)
        for rule in _BY_SCORES:
            is_set = isinstance(raw.get(rule), dict) if rule == "plateau" else bool(raw.get(rule))
            if is_set and names.stage.get("evaluate_every") is None:
                fix = "needs scores on the way: set the stage's evaluate_every"
                yield names.problem((*loc, rule), f" {fix}")
            if is_set and not _are_scored(names):
                yield names.problem((*loc, rule), " needs held-out rows, and no skill of this stage has any")
        if raw.get("teacher_surpassed") and not names.teachers:
            yield names.problem((*loc, "teacher_surpassed"), " needs teachers, and this stage has none")

    def describe(self) -> list[tuple[str, str]]:
        """Return the row of the rules in a stage's table, or none."""
        rules = [f"{limit:.4g} {BUDGETS[name]}" for name, limit in self.budgets.items()]
        rules += [f"{skill} at {score:g}" for skill, score in self.score.items()]
        if self.plateau is not None:
            rules.append(f"a plateau of {self.plateau.scorings} scorings")
        rules += ["the teachers surpassed"] if self.teacher_surpassed else []
        return [("ends early", f"by {', or '.join(rules)}")] if rules else []


def _are_scored(names: RecipeNames) -> bool:
    """Return whether a skill of the stage has held-out rows, and the recipe scores them."""
    evaluators = names.document.tree.get("evaluation")
    if isinstance(evaluators, list) and all(isinstance(e, dict) and e.get("kind") != "held_out" for e in evaluators):
        return False
    return any(map(names.has_held_out_rows, names.trained_skills))
