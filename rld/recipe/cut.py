"""The options by which a smaller model is cut out of a larger one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.utils.options import FrozenOptions


class Cut(FrozenOptions):
    """What is kept of a model.

    Hidden channels, heads and feed-forward units are kept by importance: the mean absolute activation over the tokens
    of each calibration row, squared, summed over rows, and the root of that (Muralidharan et al. 2024, Minitron).
    """

    layers: Annotated[int, Field(gt=0)] | Annotated[list[int], Field(min_length=1)] | None = None
    """How many layers are kept, or their numbers, counted from 0. None: all."""
    layers_by: Literal["evenly", "influence"] = "evenly"
    """How a number of layers is chosen. `evenly`: at equal distances, the first and the last among them. `influence`:
    those that change their input's direction most, by `1 - cos(input, output)` (Men et al. 2024, ShortGPT)."""
    intermediate_size: int | None = Field(None, gt=0)
    """Feed-forward units that are kept in each layer. None: all."""
    heads_per_group: int | None = Field(None, gt=0)
    """Query heads that are kept in each key-value group. None: all. The groups stay."""
    hidden_size: int | None = Field(None, gt=0)
    """Hidden channels that are kept. None: all."""
    calibration_rows: int = Field(256, gt=0)
    """Training rows, with gold answers, from which importance and influence are measured."""

    @property
    def needs_importance(self) -> bool:
        """Whether the model has to be run to choose what is kept."""
        by_influence = isinstance(self.layers, int) and self.layers_by == "influence"
        return by_influence or any((self.intermediate_size, self.heads_per_group, self.hidden_size))

    @classmethod
    def check_kept(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check that something is cut."""
        if not raw.keys() & {"layers", "intermediate_size", "heads_per_group", "hidden_size"}:
            yield names.problem(loc, " cuts nothing: set layers, intermediate_size, heads_per_group or hidden_size")

    def words(self) -> str:
        """Return what is kept, in words."""
        count = f"{self.layers} layers ({self.layers_by})" if isinstance(self.layers, int) else None
        parts = [
            f"layers {', '.join(map(str, self.layers))}" if isinstance(self.layers, list) else count,
            self.intermediate_size and f"{self.intermediate_size} feed-forward units a layer",
            self.heads_per_group and f"{self.heads_per_group} heads a group",
            self.hidden_size and f"{self.hidden_size} hidden channels",
        ]
        measured = f"; importance from {self.calibration_rows} rows" if self.needs_importance else ""
        return ", ".join(part for part in parts if part) + measured
