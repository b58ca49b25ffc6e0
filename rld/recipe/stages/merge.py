"""The options of a `merge` stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, items
from rld.recipe.sizes import Sizes, StageCost, quantity
from rld.recipe.stages.base import Stage
from rld.utils.flops import frozen_bytes


class Merge(Stage):
    """Merges the weights of models of one architecture and one tokenizer into one model, without training."""

    kind: Literal["merge"]
    """The kind of stage."""
    models: list[str] = Field(min_length=2)
    """The models to merge: names in `models`, earlier stages, hub ids or folders."""
    method: Literal["linear", "slerp", "task_arithmetic"] = "linear"
    """`linear`: the weighted mean (Wortsman et al. 2022, model soups). `slerp`: two models, spherical interpolation of
    each weight matrix (Shoemake 1985). `task_arithmetic`: `base` plus the weighted differences of the models from it
    (Ilharco et al. 2023)."""
    weights: list[float] | None = None
    """One number per model. `linear` and `slerp`: its share, at least 0, divided by the sum of all. `task_arithmetic`:
    the factor of its difference from `base`; below 0 takes away what the model has learnt. None: 1 for each model."""
    base: str | None = None
    """The model from which the others were trained; for `task_arithmetic` only."""

    @model_validator(mode="after")
    def _fits_the_method(self) -> Merge:
        weights = self.weights_in_use
        if len(weights) != len(self.models):
            raise ValueError(f"weights has {len(weights)} numbers for {len(self.models)} models; give one per model")
        if self.method == "slerp" and len(self.models) != 2:
            raise ValueError(f"slerp merges two models, not {len(self.models)}; use linear")
        if (self.base is not None) != (self.method == "task_arithmetic"):
            raise ValueError("base is for method task_arithmetic, and needed there")
        if self.method != "task_arithmetic" and (min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"weights of method {self.method} should be at least 0, one of them above 0")
        return self

    @property
    def weights_in_use(self) -> list[float]:
        """The weight of each model."""
        return [1.0] * len(self.models) if self.weights is None else self.weights

    def references(self) -> list[str]:
        return [*([self.base] if self.base is not None else []), *self.models]

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also its models."""
        yield from super().check(names, loc, raw)
        yield from names.reference((*loc, "base"), raw.get("base"))
        for i, name in items(raw.get("models")):
            yield from names.reference((*loc, "models", i), name)

    def cost(self, sizes: Sizes) -> StageCost:
        counts = [sizes.parameters(name) for name in self.references()]
        sizes_present = [count for count in counts if count is not None]
        is_complete = len(sizes_present) == len(counts)
        num_bytes = frozen_bytes(sum(sizes_present) + sizes_present[0]) if is_complete else None
        return StageCost(counts[0], {}, num_bytes, {})

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        models = ", ".join(
            f"{name} ({weight:g})" for name, weight in zip(self.models, self.weights_in_use, strict=True)
        )
        base = f" on {self.base}" if self.base is not None else ""
        return [
            ("merges", f"{models}, {quantity(cost.parameters)} parameters each"),
            ("by", f"{self.method}{base}"),
        ]
