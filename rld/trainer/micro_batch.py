"""A micro-batch, from the start of its loss to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rld.rollout.batch import RolloutBatch
from rld.trainer.student_forward import RecordingStudent


@dataclass
class MicroBatch:
    """A micro-batch, from the start of its loss to its end.

    Attributes:
        batch: Its tensors.
        student: The student with its outputs, once it has run.
    """

    batch: RolloutBatch
    student: RecordingStudent | None = None

    @property
    def recorded(self) -> RecordingStudent:
        """The student, which has run."""
        assert self.student is not None
        return self.student


def is_first_pass(trainer: Any) -> bool:
    """Whether an `RLDTrainer` learns from the micro-batch at hand for the first time (`num_iterations`)."""
    assert trainer.args.steps_per_generation is not None  # TRL sets it
    return bool(trainer._step // trainer.args.steps_per_generation % trainer.num_iterations == 0)
