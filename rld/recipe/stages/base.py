"""What all stages share."""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import Field

from rld.utils.options import FrozenOptions


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

    @property
    def kind(self) -> str:
        """The kind of the stage, which is also the name of its runner in `pipeline`."""
        return str(getattr(self, "run"))  # noqa: B009

    @property
    def trained_model(self) -> str:
        """The model that the stage trains: a name in `models`, an earlier stage, a hub id or a folder."""
        raise NotImplementedError

    @property
    def has_cache(self) -> bool:
        """Whether `rld cache-teachers` has something to store for it."""
        return False

    def __call__(self, context: Any) -> None:
        """Run the stage in a `pipeline.run.RunContext`, from its last checkpoint on."""
        self._runner().run(context, self)

    def dry_run(self, context: Any) -> None:
        """Build what the options describe without loading a model, so that mistakes show before any stage trains.

        Raises:
            RldError: an option cannot be used.
        """
        self._runner().dry_run(context, self)

    def fill_cache(self, context: Any) -> dict[str, tuple[int, int]]:
        """Store what its teachers say; returns per teacher the tokens it teaches on, and those it had to read."""
        counts: dict[str, tuple[int, int]] = self._runner().fill_cache(context, self)
        return counts

    def _runner(self) -> Any:
        """Return the module of `pipeline` that has the name of the stage's kind; it imports torch."""
        return importlib.import_module(f"rld.pipeline.{self.kind}")
