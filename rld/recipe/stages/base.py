"""What all stages share."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import Field

from rld.utils.options import FrozenOptions


class Parts(Protocol):
    """What a run hands to its stages; `pipeline/run.py` implements it."""

    def fine_tune(self, stage: Any) -> None: ...

    def distill(self, stage: Any) -> None: ...


class Stage(FrozenOptions):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """What later stages call this one's result; also the name of its folder."""
    trainer: dict[str, Any] = {}
    """Passed on to TRL's configuration of the stage's trainer."""
    lora: dict[str, Any] | None = None
    """Options of `peft.LoraConfig`: train an adapter, which is merged into the stage's result. None: train all."""
    checkpoint_every: int = Field(100, gt=0)
    """Optimiser steps between checkpoints: the most that a crash can lose."""
    evaluate_every: int | None = Field(None, gt=0)
    """Optimiser steps between scorings of the student on the held-out rows, logged as `score/<skill>`; their FLOPs are
    not counted. None: before and after the stage only."""
    max_flops: float | None = Field(None, gt=0)
    """Stop after the step by which the stage has spent this many FLOPs, teachers, gate and probes included. The
    learning rate's schedule goes by `steps` all the same. None: all steps."""
