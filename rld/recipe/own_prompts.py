"""What does not go with a teacher that reads a prompt of its own, or that is the student itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rld.recipe.teachers import SelfTeacherSpec
from rld.utils.options import OptionError
from rld.utils.templates import rollout_fields


def own_prompt_problem(stage: Any) -> OptionError | None:
    """Return what a `Distill` stage asks of such a teacher that it cannot do; None if nothing."""
    response = stage.signals.response
    is_content_free = response is not None and response.calibration == "content_free"
    of_prompt = {
        "the prompts without content are the student's (signals.response.calibration)": is_content_free,
        "the losses of such a teacher put no rows in order (curriculum.levels_by)": stage.curriculum.levels_by,
    }
    of_student = {
        "the student changes as it learns, so nothing that it says is kept in a cache": stage.cache is not None,
        "signals.feature learns maps to the states of a teacher that stays, and the student's own states change as it "
        "learns: leave signals.feature out": stage.signals.feature is not None,
    }
    for name, spec in stage.teachers.items():
        for reason, holds in of_student.items() if isinstance(spec, SelfTeacherSpec) else ():
            if holds:
                return OptionError(reason, "teachers", name, "model")
        for reason, holds in of_prompt.items() if spec.prompt is not None else ():
            if holds:
                return OptionError(f"leave it out: {reason}", "teachers", name, "prompt")
        for reason, holds in _reasons_against_attempts(stage, rollout_fields(spec.prompt)).items():
            if holds:
                return OptionError(reason, "teachers", name, "prompt")
    return None


def _reasons_against_attempts(stage: Any, fields: Sequence[str]) -> dict[str, bool]:
    """Return reasons why fields of a rollout cannot stand in a prompt of a `Distill` stage, and whether they hold."""
    if not fields:
        return {}
    rollout, clause = stage.rollout, f"it shows {{{fields[0]}}} of a rollout, and"
    is_capacity_blind = stage.capacity is not None and stage.gate == "off"
    return {
        f"{clause} completions are labels here": stage.learns_labels,
        f"{clause} a cache keeps what stays the same: leave cache out": stage.cache is not None,
        f"{clause} with gold answers alone the student tries nothing (rollout.gold_completions)": (
            rollout.completions == rollout.gold_completions
        ),
        f"{clause} without a gate nothing tells capacity how often the teacher is correct: leave gate: off out": (
            is_capacity_blind
        ),
        f"{clause} there is none on held-out rows, so that it has no score: leave stop.teacher_surpassed out": (
            stage.stop.teacher_surpassed
        ),
    }


def average_bytes(stage: Any, student_bytes: int) -> int:
    """Return the memory of a `Distill` stage's running averages of its student, each as large as its weights.

    Beside an adapter only that has an average, which does not count.
    """
    averages = [spec for spec in stage.teachers.values() if isinstance(spec, SelfTeacherSpec) and spec.average]
    return 0 if stage.lora is not None else len(averages) * student_bytes
