"""The options of an `sft` stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rld.recipe.stages.base import Stage

_MAX_ROWS = 20_000


class Sft(Stage):
    """Supervised fine-tuning on gold answers, or on a teacher's: makes specialists, or gives a student first steps."""

    run: Literal["sft"]
    model: str
    """What to train: a name in `models`, an earlier stage, a hub id or a folder."""
    skills: list[str] | None = None
    """Skills to train on, in equal shares. None: all."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch: int = Field(32, gt=0)
    """Rows per optimiser step, over all processes and accumulation steps."""
    rows: int | None = Field(None, gt=0)
    """Rows to train on, over all skills, again and again. None: as many as the steps take, 20,000 at most."""
    shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How many rows a skill gets relative to the others, by name; one that is not named counts as 1."""
    teacher: str | None = None
    """Learn this model's answers instead of gold ones (sequence-level distillation, Kim and Rush 2016): a name in
    `models`, an earlier stage, a hub id or a folder. Its tokenizer may be any."""
    verify: bool = True
    """Learn only those of the teacher's answers that are right, as often as to keep the skills' shares."""

    @property
    def num_rows(self) -> int:
        """Rows to train on, over all skills; the shares of the skills are rounded to whole rows."""
        return min(self.rows or _MAX_ROWS, self.steps * self.batch)

    @property
    def trained_model(self) -> str:
        return self.model
