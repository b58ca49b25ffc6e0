"""The options of a `merge` stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rld.recipe import registry
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, items
from rld.recipe.sizes import Sizes, StageCost, quantity
from rld.recipe.stages.base import Stage
from rld.utils.flops import frozen_bytes
from rld.utils.options import OptionError


class Merge(Stage):
    """Merges the weights of models of one architecture and one tokenizer into one model, without training."""

    kind: Literal["merge"]
    """The kind of stage."""
    models: list[str] = Field(min_length=1)
    """The models to merge: names in `models`, earlier stages, hub ids or folders. A PEFT adapter (LoRA) stands for
    `base` with the adapter in its weights; one adapter alone is merged into `base`."""
    method: Literal["linear", "slerp", "task_arithmetic"] = "linear"
    """`linear`: the weighted mean (Wortsman et al. 2022, model soups). `slerp`: two models, spherical interpolation of
    each weight matrix (Shoemake 1985). `task_arithmetic`: `base` plus the weighted differences of the models from it
    (Ilharco et al. 2023)."""
    weights: list[float] | None = None
    """One number per model. `linear` and `slerp`: its share, at least 0, divided by the sum of all. `task_arithmetic`:
    the factor of its difference from `base`; below 0 takes away what the model has learnt. None: 1 for each model."""
    base: str | None = None
    """The model from which the others were trained; for `task_arithmetic`, and for adapters."""

    @model_validator(mode="after")
    def _fits_the_method(self) -> Merge:
        weights = self.weights_in_use
        if len(weights) != len(self.models):
            message = f"{len(weights)} numbers for {len(self.models)} models; give one per model"
            raise OptionError(message, "weights")
        if self.method == "slerp" and len(self.models) != 2:
            raise OptionError(f"slerp merges two models, not {len(self.models)}; use linear", "method")
        if self.base is None and self.method == "task_arithmetic":
            raise OptionError("task_arithmetic adds to a model: set base to it", "method")
        if self.method != "task_arithmetic" and (min(weights) < 0 or sum(weights) <= 0):
            message = f"those of method {self.method} should be at least 0, one of them above 0"
            raise OptionError(message, "weights")
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
        models = [(i, name) for i, name in items(raw.get("models")) if isinstance(name, str)]
        local_names = [*names.models, *names.stage_names]
        adapters = [
            (i, name) for i, name in models if name not in local_names and registry.is_adapter(name, names.folder)
        ]
        for i, name in models:
            yield from names.reference((*loc, "models", i), name, takes_adapters=True)
        for i, name in adapters if raw.get("base") is None else []:
            yield names.problem((*loc, "models", i), f": {name} is a PEFT adapter: set base to its model")
        if raw.get("base") is not None and not adapters and raw.get("method") != "task_arithmetic":
            yield names.problem((*loc, "base"), " is for method task_arithmetic and for adapters")
        if len(models) == 1 and not adapters:
            yield names.problem((*loc, "models"), ": one model alone is merged with nothing; name another one")
        yield from _mixed_bases(names, (*loc, "models"), adapters)

    def cost(self, sizes: Sizes) -> StageCost:
        size, num_models = sizes.parameters(self.origin), len(set(self.references()))
        num_bytes = None if size is None else frozen_bytes((num_models + 1) * size)
        return StageCost(size, {}, num_bytes, {})

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        models = ", ".join(
            f"{name} ({weight:g})" for name, weight in zip(self.models, self.weights_in_use, strict=True)
        )
        base = f" on {self.base}" if self.base is not None else ""
        return [
            ("merges", f"{models}, {quantity(cost.parameters)} parameters each"),
            ("by", f"{self.method}{base}"),
        ]


def _mixed_bases(names: RecipeNames, loc: Loc, adapters: list[tuple[int, str]]) -> Iterator[RecipeProblem]:
    """Check that adapters were trained on one model, as far as they say on which."""
    bases = [(i, name, _adapter_base(name, names.folder)) for i, name in adapters]
    named_bases = [(i, name, base) for i, name, base in bases if base]
    for i, name, base in named_bases[1:]:
        _, first, first_base = named_bases[0]
        if _place(base, names.folder) != _place(first_base, names.folder):
            text = f": {name} is an adapter of {base}, and {first} one of {first_base}; one merge has one base"
            yield names.problem((*loc, i), text)


def _place(name: str, folder: Path) -> str:
    """Return the one path of a folder that may be written in several ways, and any other name as it is."""
    path = registry.find_path(name, folder)
    return name if path is None else str(path.resolve())


def _adapter_base(name: str, folder: Path) -> str | None:
    """Return the model for which an adapter on this machine was trained, as its configuration names it."""
    path = registry.model_file(name, "adapter_config.json", folder)
    try:
        content = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # which the check of its folder names
        return None
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    return base if isinstance(base, str) and base else None
