"""Builds what scores a trainer's rollouts with teachers: the gate, and `TeacherScoring`, from the trainer's options."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rld.errors import RecipeError
from rld.rollout.gate import TeacherGate
from rld.rollout.label_gate import LabelGate
from rld.rollout.label_scores import LabelScores
from rld.rollout.scoring_options import TeacherScoringOptions
from rld.rollout.teacher_scoring import TeacherScoring
from rld.rollout.verifier import Verify
from rld.teachers.teacher import Teacher


def require_labels(trainer: Any) -> None:
    """Refuse a trainer whose completions are labels and in which some skill has none, or which samples otherwise.

    Raises:
        RecipeError: it is such a trainer.
    """
    labels = trainer.args.labels
    if not labels:
        return
    if set(labels) != set(trainer.skills):
        raise RecipeError(f"labels: they name the skills {sorted(labels)}, and rows have {sorted(trainer.skills)}")
    if trainer.tools or trainer.rollout_func is not None:
        raise RecipeError("labels: they take the place of completions; leave out tools and rollout_func")
    if trainer.num_generations_eval != trainer.num_generations:
        raise RecipeError("num_generations_eval: where completions are labels, it is their number; leave it out")


def gate_of(trainer: Any, verify: Verify | None) -> TeacherGate | LabelGate | None:
    """Return the gate of an `RLDTrainer`; None where teachers teach on all prompts.

    Args:
        trainer: The trainer, with its teachers.
        verify: Gives 1 to correct answers. None: there is no such function.
    """
    args, teachers = trainer.args, trainer.teachers
    is_gated = args.gate == "per_prompt" and bool(teachers)
    if is_gated and args.labels:
        return LabelGate(teachers, args.labels, trainer.accelerator)
    if not is_gated or verify is None:
        _warn_of_unverified(teachers, trainer.runtime.teachers_SK)
        return None
    resamples = trainer.runtime.controller.required_measurements.resampled_answers
    return TeacherGate(
        teachers,
        trainer._encoder,
        verify,
        max_new_tokens=args.answer_length,
        device=trainer.accelerator.device,
        resampling_temperature=args.temperature if resamples else None,
    )


def teacher_scoring(trainer: Any) -> TeacherScoring:
    """Return what scores the rollouts of an `RLDTrainer` that has its gate and its losses."""
    args, ensemble = trainer.args, trainer.ensemble
    options = TeacherScoringOptions(
        combination=trainer._joint_loss.objective.combination,
        teacher_reward=args.teacher_reward,
        distill_on=args.distill_on,
        rows_per_forward=args.per_device_train_batch_size,
        temperature=trainer.temperature,
        has_policy="policy" in trainer.runtime.signals,
        answer_length=args.answer_length,
    )
    label_scores = None
    if args.labels:
        prompts = args.content_free_prompts or {}
        label_scores = LabelScores(args.label_words, args.label_calibration, prompts, ensemble, trainer._encoder)
    return TeacherScoring(
        options,
        ensemble,
        trainer.runtime,
        gate=trainer.gate,
        accelerator=trainer.accelerator,
        flop_meter=trainer.flop_meter,
        label_scores=label_scores,
        gate_time=functools.partial(trainer.timer.part, "gate"),
    )


def _warn_of_unverified(teachers: Sequence[Teacher], shares_SK: Tensor) -> None:
    """Warn of teachers of all skills with equal shares that nobody has verified; other shares are somebody's choice."""
    numbers = [k for k, teacher in enumerate(teachers) if not teacher.verified and teacher.skills is None]
    if len(numbers) > 1 and bool((shares_SK[:, numbers] == shares_SK[:, numbers[:1]]).all()):
        warnings.warn(
            f"nothing tells on which skills teachers {[teachers[k].name for k in numbers]} are correct, so all teach "
            "every skill with equal weight, and one that is wrong on a skill harms the student there; give them "
            "Teacher(..., skills=[...]) or verified={...}",
            stacklevel=6,
        )
