"""Estimated FLOPs of what a stage measures beside its training: retention, and transfer to a target."""

from __future__ import annotations

from collections.abc import Sequence

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
