"""The numbers of a recipe that depend on time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """What is chosen by time and memory.

    Attributes:
        rows: Rows of an update.
        accumulation: Parts in which an update is computed one after another, where it has two rows for each.
        has_adapter: Whether the student is trained by a LoRA adapter.
        is_offloaded: Whether teachers wait in CPU memory.
        held_out: A number of rows, or of a single text its share.
        steps: Of each stage.
        step_seconds: About how long one of them takes; empty where that is not known.
    """

    rows: int = 16
    accumulation: int = 1
    has_adapter: bool = False
    is_offloaded: bool = False
    held_out: float = 2
    steps: Mapping[str, int] = field(default_factory=dict)
    step_seconds: Mapping[str, float] = field(default_factory=dict)
