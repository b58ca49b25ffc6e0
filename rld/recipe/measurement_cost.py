"""Estimated FLOPs of what a stage measures beside its training: retention, transfer, and how its student answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rld.controllers.gold_share import MOST_FIRST, NUM_FIRST, are_bare
from rld.controllers.retention_rule import EARLY_INTERVAL, EARLY_TICKS, LATE_INTERVAL, RetentionRule
from rld.controllers.target import TRANSFER_ROWS
from rld.recipe.sizes import Lengths, Sizes
from rld.utils.flops import forward_flops, training_flops


def retention_flops(
    rule: RetentionRule, protected: Sequence[str], student: int, sizes: Sizes, steps: int, num_ticks: int
) -> float:
    """Return the FLOPs of sampling, probing and replaying protected skills, each replayed in every step.

    Args:
        rule: How they are protected.
        protected: The skills.
        student: Parameters of the student.
        sizes: The sizes of the recipe.
        steps: Optimiser steps of the stage.
        num_ticks: Its ticks.
    """
    if not protected:
        return 0.0
    lengths = sizes.lengths(list(protected))
    row = lengths.prompt + lengths.answer
    probe_flops = forward_flops(student, len(protected) * rule.probe_prompts * row)
    sampling_flops = forward_flops(student, 2 * len(protected) * rule.prompts * row)
    replay_flops = steps * training_flops(student, len(protected) * rule.batch * row)
    num_early = min(num_ticks, EARLY_TICKS) // EARLY_INTERVAL
    num_probes = 1 + num_early + max(num_ticks - EARLY_TICKS, 0) // LATE_INTERVAL
    return sampling_flops + replay_flops + num_probes * probe_flops


def transfer_flops(student: int, num_skills: int, num_targets: int, lengths: Lengths) -> float:
    """Return the FLOPs of measuring once how far each skill transfers to the target skills.

    Args:
        student: Parameters of the student.
        num_skills: The skills of the stage.
        num_targets: Of these, the target skills.
        lengths: Mean lengths of the skills' rows.
    """
    num_rows = (num_skills + num_targets) * TRANSFER_ROWS
    return training_flops(student, num_rows * (lengths.prompt + lengths.answer))


def first_answer_flops(stage: Any, student: int, sizes: Sizes, completion: float | None, can_solve: bool) -> float:
    """Return the FLOPs of the rows that a student answers before its first update, whose gold answers may be bare.

    Args:
        stage: The stage, a `Distill`.
        student: Parameters of the student.
        sizes: The sizes of the recipe.
        completion: Mean tokens of its answers. None: those of the gold answers.
        can_solve: Whether one of them is correct. If none is, and their length is given, it answers most rows.
    """
    has_judge = sizes.can_judge or stage.audit is not None
    if not (stage.has_gold_prompts and stage.gold.share is None and has_judge) or stage.gold.answers == "teachers":
        return 0.0
    num_rows = NUM_FIRST if can_solve or completion is None else MOST_FIRST
    num_tokens = 0.0
    for skill in stage.skills or sizes.skills:
        lengths = sizes.lengths([skill])
        if sizes.num_answered(skill) and are_bare(lengths.answer, sizes.max_new_tokens):
            num_tokens += num_rows * (lengths.prompt + (completion or lengths.answer))
    return forward_flops(student, num_tokens)
