"""Which rows of a skill are held out for scores, and how a model is asked about them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from rld.utils.options import FrozenOptions


class HeldOutFile(FrozenOptions):
    """Rows for scores from a file of their own; none are then taken from the rows to train on."""

    file: str
    """Path of the file or folder, relative to the recipe. Training leaves out questions that it has."""

    @property
    def origin(self) -> str:
        """The source of the rows, as `rld check` prints it."""
        return self.file


class HeldOutSplit(FrozenOptions):
    """Rows for scores from another split of the same data set; none are then taken from the rows to train on."""

    split: str
    """The split, such as `test`. Training leaves out questions that it has."""

    @property
    def origin(self) -> str:
        """The source of the rows, as `rld check` prints it."""
        return self.split


class Samples(FrozenOptions):
    """Answers that a model samples for each held-out row."""

    count: int = Field(ge=1, le=1000)
    """How many."""
    temperature: float = Field(1.0, gt=0, le=100)
    """Divides the logits: above 1, answers differ more."""


HeldOutRows: TypeAlias = Annotated[int, Field(ge=0, le=100_000)] | Annotated[float, Field(gt=0, lt=1)]
