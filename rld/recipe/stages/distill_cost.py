"""Estimate the FLOPs of a distillation stage, by the accounts by which a run counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rld.controllers.retention_rule import EARLY_INTERVAL, EARLY_TICKS, LATE_INTERVAL
from rld.recipe.sizes import Lengths, Sizes
from rld.utils.flops import Account, forward_flops, training_flops

if TYPE_CHECKING:
    from rld.recipe.stages.distill import Distill

_RESAMPLED = 1.25
"""Answers of a teacher per prompt at the gate, where the controller asks for a second one to some prompts."""


def flops_by_account(stage: Distill, student: int, teachers: Mapping[str, int], sizes: Sizes) -> dict[Account, int]:
    """Return the estimated FLOPs of a stage.

    A prompt is read once for all of its completions. Teachers that name no skills are taken to share the rows.

    Args:
        stage: The stage.
        student: Parameters of the student.
        teachers: Parameters of each teacher that is loaded in the training process.
        sizes: The sizes of the recipe.
    """
    skills = stage.skills or sizes.skills
    lengths, rollout = sizes.lengths(skills), stage.rollout
    num_sampled = rollout.completions - rollout.gold_completions
    completed = rollout.prompts * rollout.completions * lengths.answer
    prompts = rollout.prompts * lengths.prompt
    sampled = prompts + rollout.prompts * num_sampled * lengths.answer if num_sampled else 0.0
    flops: dict[Account, float] = {
        "generation": stage.steps * forward_flops(student, sampled),
        "student": stage.steps * training_flops(student, prompts + completed),
        "teachers": 0.0,
        "gate": 0.0,
        "answers": 0.0,
        "retention": _retention_flops(stage, student, sizes),
    }
    required = stage.controller.required_measurements
    num_ticks = stage.steps // stage.controller.decide_every
    gold = required.gold_rows * len(skills) * (lengths.prompt + lengths.answer)
    flops["student"] += num_ticks * forward_flops(student, gold)
    answered = rollout.prompts * (lengths.prompt + lengths.answer) * (_RESAMPLED if required.resampled_answers else 1)
    for name, size in teachers.items():
        spec = stage.teachers[name]
        share = len(spec.skills) / len(skills) if spec.skills is not None else 1 / len(teachers)
        flops["teachers"] += stage.steps * share * forward_flops(size, prompts + completed)
        if stage.gate == "per_prompt":
            flops["gate"] += stage.steps * share * forward_flops(size, answered)
        probed = len(skills) * spec.probe_prompts * (lengths.prompt + lengths.answer)
        flops["answers"] += forward_flops(size, probed)
    return {account: round(number) for account, number in flops.items()}


def _retention_flops(stage: Distill, student: int, sizes: Sizes) -> float:
    """Return the FLOPs of sampling, probing and replaying protected skills, each replayed in every step."""
    rule, protected = stage.retain, stage.protected(sizes.skills)
    if rule is None or not protected:
        return 0.0
    lengths: Lengths = sizes.lengths(protected)
    row = lengths.prompt + lengths.answer
    probed = forward_flops(student, len(protected) * rule.probe_prompts * row)
    sampled = forward_flops(student, 2 * len(protected) * rule.prompts * row)
    replayed = stage.steps * training_flops(student, len(protected) * rule.batch * row)
    num_ticks = stage.steps // stage.controller.decide_every
    num_early = min(num_ticks, EARLY_TICKS) // EARLY_INTERVAL
    num_probes = 1 + num_early + max(num_ticks - EARLY_TICKS, 0) // LATE_INTERVAL
    return sampled + replayed + num_probes * probed
