"""Counts over a rollout: attempts, successes, informative groups, and what the gate decided.

Shapes: B completions over all processes, R rewards, K teachers, S skills.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from rld.controllers.statistics import AttemptCounts, GateCounts
from rld.errors import DataError
from rld.rollout.verifier import successes
from rld.types import DEFAULT_SKILL


def places(num_rows: int, accelerator: Accelerator) -> Tensor:
    """Return the places of this process's rows among those of all processes, `[B]`."""
    first = accelerator.process_index * num_rows
    return torch.arange(first, first + num_rows, device=accelerator.device)


def skill_ids(rows: list[dict[str, Any]], skills: list[str]) -> Tensor:
    """Return the index of each row's skill, `[B]`.

    Raises:
        DataError: a row carries another skill.
    """
    labels = [str(row.get("skill", DEFAULT_SKILL)) for row in rows]
    unknown = sorted(set(labels) - set(skills))
    if unknown:
        raise DataError(f"rows carry the skill {unknown[0]!r}, which is none of {skills}; name it in `skills`")
    index = {skill: s for s, skill in enumerate(skills)}
    return torch.tensor([index[label] for label in labels])


class GroupOutcomes(NamedTuple):
    """Which completions are attempts of the student, which of them succeeded, and the counts per skill."""

    attempted_B: Tensor
    """Completions of the student's own that the verifier applies to, bool."""
    succeeded_B: Tensor
    """Of these, those that the verifier gave 1, bool."""
    counts: AttemptCounts


def group_counts(
    rewards: Tensor, weights: Tensor, skills: Tensor, num_generations: int, num_skills: int, gold: int = 0
) -> GroupOutcomes:
    """Count attempts, successes and informative groups, those whose weighted rewards differ, per skill.

    Args:
        rewards: `[B, R]`, over all processes; NaN where a reward does not apply. The first is the verifier.
        weights: `[R]`.
        skills: `[B]`, the index of each completion's skill; the same within a group.
        num_generations: Completions per group; groups are consecutive.
        num_skills: S.
        gold: The first so many completions of each group are gold answers: no attempts of the student's.
    """
    own = torch.arange(len(rewards), device=rewards.device) % num_generations >= gold
    attempted = ~rewards[:, 0].isnan() & own
    succeeded = successes(rewards) & own
    totals = (rewards * weights.to(rewards)).nansum(1)
    scored = ~rewards.isnan().all(1)
    highest = totals.masked_fill(~scored, -math.inf).view(-1, num_generations).amax(1)
    lowest = totals.masked_fill(~scored, math.inf).view(-1, num_generations).amin(1)
    counts = AttemptCounts.zeros(num_skills, 0, rewards.device)
    counts.attempts_S.index_add_(0, skills, attempted.double())
    counts.successes_S.index_add_(0, skills, succeeded.double())
    group_skills = skills[::num_generations]
    counts.groups_S.index_add_(0, group_skills, torch.ones_like(highest, dtype=torch.float64))
    counts.informative_S.index_add_(0, group_skills, (highest > lowest).double())
    return GroupOutcomes(attempted, succeeded, counts)


def gate_counts(
    own_B2: Tensor,
    skills_B: Tensor,
    asked_BK: Tensor,
    open_BK: Tensor,
    again_BK2: Tensor,
    num_generations: int,
    num_skills: int,
) -> GateCounts:
    """Count the gate's questions and their answers, per skill and teacher, over all processes.

    Args:
        own_B2: Whether a completion is an attempt of the student's, and whether it succeeded.
        skills_B: The index of each completion's skill.
        asked_BK: The teachers that were asked to answer the prompt.
        open_BK: Those that answered it rightly.
        again_BK2: Whether one was asked once more, and was right again; at one completion of each prompt.
        num_generations: Completions per prompt; groups are consecutive.
        num_skills: S.
    """
    counts = GateCounts.zeros(num_skills, asked_BK.shape[1], open_BK.device)
    prompt_skills = skills_B[::num_generations]
    counts.prompts_SK.index_add_(0, prompt_skills, asked_BK[::num_generations].double())
    counts.correct_SK.index_add_(0, prompt_skills, open_BK[::num_generations].double())
    attempted_B, succeeded_B = own_B2.double().unbind(1)
    counts.attempts_SK.index_add_(0, skills_B, open_BK * attempted_B[:, None])
    counts.successes_SK.index_add_(0, skills_B, open_BK * succeeded_B[:, None])
    resampled_BK, resampled_correct_BK = again_BK2.double().unbind(2)
    counts.resampled_SK.index_add_(0, skills_B, resampled_BK)
    counts.resampled_correct_SK.index_add_(0, skills_B, resampled_correct_BK)
    return counts
