"""The options of a `prune` stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from rld.recipe.cut import Cut
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.recipe.sizes import Sizes, StageCost, quantity
from rld.recipe.stages.base import Stage
from rld.utils.flops import Account, forward_flops, frozen_bytes


class Prune(Cut, Stage):
    """Cuts a smaller model out of one that an earlier stage trained, or any other, without training.

    Its weights and tokenizer are the larger model's. The feature signal of a later stage pairs its layers with those of
    the larger model that they were (`layers: uniform`).
    """

    kind: Literal["prune"]
    """The kind of stage."""
    model: str
    """The larger model: a name in `models`, an earlier stage, a hub id or a folder."""

    @property
    def cut(self) -> Cut:
        return self

    def references(self) -> list[str]:
        return [self.model]

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also its model, and that something is cut."""
        yield from super().check(names, loc, raw)
        yield from names.reference((*loc, "model"), raw.get("model"))
        yield from cls.check_kept(names, loc, raw)

    def cost(self, sizes: Sizes) -> StageCost:
        whole, size = sizes.parameters(self.model), sizes.cut_parameters(self.model, self)
        num_bytes = None if whole is None or size is None else frozen_bytes(whole + size)
        flops: dict[Account, int] = {}
        if whole is not None and self.needs_importance:
            lengths = sizes.lengths(sizes.skills)
            tokens = self.calibration_rows * (lengths.prompt + lengths.answer)
            flops["student"] = round(forward_flops(whole, tokens))
        return StageCost(size, {}, num_bytes, flops)

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        return [("cuts", f"{self.model} to {quantity(cost.parameters)} parameters"), ("keeps", self.words())]
