"""The options of an `evaluate` stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, items
from rld.recipe.sizes import Sizes, StageCost, quantity
from rld.recipe.stages.base import Stage, listed
from rld.utils.flops import frozen_bytes


class Evaluate(Stage):
    """Scores a model on held-out rows, and writes its predictions for them into `predictions/NAME/after.jsonl`."""

    makes_model: ClassVar[bool] = False

    kind: Literal["evaluate"]
    """The kind of stage."""
    model: str
    """The model to score: a name in `models`, an earlier stage, a hub id or a folder."""
    skills: list[str] | None = None
    """Skills to score it on. None: all skills with held-out rows, and the tasks of other evaluators."""

    def references(self) -> list[str]:
        return [self.model]

    def skills_in_use(self, skills: Iterable[str]) -> list[str]:
        return list(skills) if self.skills is None else self.skills

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also its model, and that its skills have held-out rows."""
        yield from super().check(names, loc, raw)
        yield from names.reference((*loc, "model"), raw.get("model"))
        yield from names.skill_list((*loc, "skills"), raw.get("skills"), names.skills)
        for i, name in items(raw.get("skills")):
            if isinstance(name, str) and not names.has_held_out_rows(name):
                yield names.problem((*loc, "skills", i), f": skill {name!r} has no held-out rows (held_out: 0)")

    def cost(self, sizes: Sizes) -> StageCost:
        size = sizes.parameters(self.model)
        return StageCost(size, {}, None if size is None else frozen_bytes(size), {})

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        return [
            ("scores", f"{self.model}, {quantity(cost.parameters)} parameters"),
            ("on", f"the held-out rows of {listed(self.skills)}"),
        ]
