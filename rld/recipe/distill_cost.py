"""The estimated FLOPs of a `distill` stage, by account."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rld.controllers.gold_share import NEW_PASSES, NEW_SHARE, REPEATED_SHARE
from rld.recipe.measurement_cost import retention_flops, transfer_flops
from rld.recipe.sizes import Sizes
from rld.utils.flops import Account, forward_flops, training_flops
from rld.utils.templates import has_answer


def distill_flops(stage: Any, student: int, teachers: Mapping[str, int], sizes: Sizes) -> dict[Account, int]:
    """Return the estimated FLOPs of a stage.

    A prompt is read once for all of its completions. Teachers that name no skills are taken to share the rows. For the
    gate each reads the gold answer as one completion more, which is taken to decide its answers, the second one too; no
    verdict is taken to be assumed. A prompt of its own that shows the gold answer is longer by that answer. Where the
    controller sets the share of gold answers, the student is taken to succeed on half of its completions.

    Args:
        stage: The stage, a `Distill`.
        student: Parameters of the student.
        teachers: Parameters of each teacher that is loaded in the training process.
        sizes: The sizes of the recipe.
    """
    skills = stage.skills or sizes.skills
    lengths, rollout = sizes.lengths(skills), stage.rollout
    num_completions = rollout.num_completions(sizes.num_labels.get(skill, 1) for skill in skills)
    num_sampled = 0 if stage.learns_labels else num_completions - rollout.gold_completions
    num_prompts = rollout.prompts * (1 - gold_share(stage, sizes))
    num_gold = (rollout.prompts - num_prompts) * num_completions  # each with a prompt of its own
    gold_tokens = num_gold * (lengths.prompt + lengths.answer)
    completion_tokens = num_prompts * num_completions * lengths.answer
    prompt_tokens = num_prompts * lengths.prompt
    sampled_tokens = prompt_tokens + num_prompts * num_sampled * lengths.answer if num_sampled else 0.0
    flops: dict[Account, float] = {
        "generation": stage.steps * forward_flops(student, sampled_tokens),
        "student": stage.steps * training_flops(student, prompt_tokens + completion_tokens + gold_tokens),
        "teachers": 0.0,
        "gate": 0.0,
        "answers": 0.0,
        "retention": 0.0,
    }
    required = stage.controller.required_measurements
    num_ticks = stage.steps // stage.controller.decide_every
    measured_tokens = required.gold_rows * len(skills) * (lengths.prompt + lengths.answer)
    flops["student"] += num_ticks * forward_flops(student, measured_tokens)
    if stage.target is not None:
        flops["student"] += num_ticks * transfer_flops(student, len(skills), len(stage.target), lengths)
    if stage.retain is not None:
        protected = stage.protected(sizes.skills)
        flops["retention"] = retention_flops(stage.retain, protected, student, sizes, stage.steps, num_ticks)
    answer_tokens = num_prompts * lengths.answer
    for name, size in teachers.items():
        spec = stage.teachers[name]
        share = len(spec.skills) / len(skills) if spec.skills is not None else 1 / len(teachers)
        own = answer_tokens if spec.prompt is not None and has_answer(spec.prompt) else 0.0
        flops["teachers"] += stage.steps * share * forward_flops(size, prompt_tokens + own + completion_tokens)
        if stage.gate == "per_prompt" and not stage.learns_labels:
            flops["gate"] += stage.steps * share * forward_flops(size, answer_tokens)
        num_tries = num_completions if stage.learns_labels else 1
        probe_tokens = len(skills) * spec.probe_prompts * (lengths.prompt + num_tries * lengths.answer)
        flops["answers"] += forward_flops(size, probe_tokens)
    return {account: round(number) for account, number in flops.items()}


def gold_share(stage: Any, sizes: Sizes) -> float:
    """Return the mean share of a stage's prompts that have their gold answer alone, over steps and skills."""
    if not stage.has_gold_prompts:
        return 0.0
    if stage.gold.share is not None:
        return float(stage.gold.share)
    skills = stage.skills or sizes.skills
    answers_per_step = NEW_SHARE * stage.rollout.prompts * stage.rollout.completions / len(skills)
    shares = []
    for skill in skills:
        num_rows = sizes.rows[skill].num_rows if skill in sizes.rows else math.inf
        new = min(NEW_PASSES * num_rows / answers_per_step / stage.steps, 1.0)  # share of the steps
        shares.append(new * NEW_SHARE + (1 - new) * REPEATED_SHARE / 2)
    return fmean(shares)
