"""Lets the running averages of a student that teaches itself follow its updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from rld.teachers.self_teacher import SelfTeacher
from rld.teachers.teacher import Teacher


class RunningAverages(TrainerCallback):
    """Begins the average of each self-teacher with the training, unless a checkpoint had it, and goes on with it."""

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self.teachers = [teacher for teacher in teachers if isinstance(teacher, SelfTeacher)]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for teacher in self.teachers:
            teacher.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for teacher in self.teachers:
            teacher.follow()
