"""Whether a `distill` stage learns gold answers beside the student's own completions, and what that excludes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rld.recipe.plugins import CurriculumSpec
from rld.recipe.signals import GoldSignal
from rld.recipe.teachers import SelfTeacherSpec, ServedTeacher
from rld.utils.options import OptionError


def gold_in_use(stage: Any) -> GoldSignal | None:
    """Return how a stage learns gold answers: as its recipe says, or as the default controller does by itself.

    By itself it does where reinforcement and teachers are combined: a stage with one of the two is what its user chose.
    It does not beside a curriculum that goes by attempts, which would hear of one prompt in thirty-two and hardly move.

    Args:
        stage: The stage, a `Distill`.

    Returns:
        None where it learns none.
    """
    if stage.signals.gold != "auto":
        gold: GoldSignal | None = stage.signals.gold
        return gold
    if not _would_learn_gold(stage) or next(obstacles(stage), None):
        return None
    # A server may ask money for an answer, and has many to write.
    can_answer = not any(
        isinstance(spec, SelfTeacherSpec | ServedTeacher) or spec.reads_attempts for spec in stage.teachers.values()
    )
    return GoldSignal(answers="either" if can_answer else "rows")


def _would_learn_gold(stage: Any) -> bool:
    """Return whether the default controller learns gold answers by itself in a stage that samples in the plain way."""
    is_combined = stage.signals.policy is not None and stage.teachers
    decides = stage.controller.kind == "gap" and stage.curriculum.use == CurriculumSpec().use
    return bool(is_combined and decides and not stage.learns_labels and not stage.rollout.gold_completions)


def obstacles(stage: Any) -> Iterator[tuple[str, ...]]:
    """Yield the path within a stage of each option that keeps it from learning gold answers by itself."""
    if stage.signals.gold == "auto" and _would_learn_gold(stage):
        if stage.rollout.temperature != 1:  # a gold answer's loss needs log-probabilities at temperature 1
            yield "rollout", "temperature"
        if stage.rollout.refill:
            yield "rollout", "refill"
        if stage.trainer.get("use_vllm"):  # it samples a rollout whole, also what gold answers would replace
            yield "trainer", "use_vllm"


def require_possible_gold(stage: Any) -> None:
    """Check that a stage can learn gold answers, if it does.

    Raises:
        OptionError: another of its options excludes that.
    """
    if stage.gold is None:
        return
    if stage.gold.share is not None and not stage.has_gold_prompts:
        raise OptionError("leave it out with rollout.gold_completions and labels", "signals", "gold", "share")
    if stage.learns_teachers:
        _require_answering_teachers(stage)
    if stage.has_gold_prompts and stage.rollout.refill:
        raise OptionError("it samples a prompt anew: leave signals.gold out", "rollout", "refill")
    if stage.rollout.temperature != 1:
        fix = "set it to 1; signals.response has a temperature of its own"
        raise OptionError(f"signals.gold needs log-probabilities at temperature 1: {fix}", "rollout", "temperature")


def _require_answering_teachers(stage: Any) -> None:
    """Check that a stage's teachers can give the answers that are learnt.

    Raises:
        OptionError: they cannot.
    """
    place = "signals", "gold", "answers"
    if not stage.has_gold_prompts:
        raise OptionError("leave it out with rollout.gold_completions and labels", *place)
    for name, spec in stage.teachers.items():
        if isinstance(spec, SelfTeacherSpec):
            raise OptionError(f"the teacher '{name}' is the student itself, whose answers change as it learns", *place)
        if spec.reads_attempts:
            raise OptionError(f"the prompt of the teacher '{name}' shows attempts, and rows have none", *place)


def described_gold(stage: Any) -> str:
    """Return how a stage learns gold answers, in words; empty where it learns none."""
    if stage.gold is None:
        return ""
    weight = f" x {stage.gold.weight:g}" if stage.gold.weight != 1 else ""
    by = " beside own completions (signals.gold: null leaves them out)" if stage.signals.gold == "auto" else ""
    answers = {"rows": "gold answers", "teachers": "correct answers of teachers"}.get(
        stage.gold.answers, "gold answers or, without any, correct ones of teachers"
    )
    return f"{answers}{weight}{by}"
