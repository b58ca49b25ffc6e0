"""Counts over a rollout: attempts, successes, informative groups, and what the gate decided.

Shapes: B completions over all processes, R rewards, K teachers, S skills.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

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


def group_counts(
    rewards: Tensor, weights: Tensor, skills: Tensor, num_generations: int, num_skills: int, gold: int = 0
) -> tuple[Tensor, Tensor]:
    """Count successes and informative groups per skill.

    Args:
        rewards: `[B, R]`, over all processes; NaN where a reward does not apply. The first is the verifier.
        weights: `[R]`.
        skills: `[B]`, the index of each completion's skill; the same within a group.
        num_generations: Completions per group; groups are consecutive.
        num_skills: S.
        gold: The first so many completions of each group are gold answers: no attempts of the student's.

    Returns:
        Which completions were attempted (the student's own that the verifier applies to) and which succeeded (it gave
        them 1), `[2, B]` bool, and per skill `[S, 4]` float64: attempts, successes, groups, and informative groups,
        those whose weighted rewards differ.
    """
    own = torch.arange(len(rewards), device=rewards.device) % num_generations >= gold
    attempted = ~rewards[:, 0].isnan() & own
    success = successes(rewards) & own
    totals = (rewards * weights.to(rewards)).nansum(1)
    scored = ~rewards.isnan().all(1)
    highest = totals.masked_fill(~scored, -math.inf).view(-1, num_generations).amax(1)
    lowest = totals.masked_fill(~scored, math.inf).view(-1, num_generations).amin(1)
    counts = torch.zeros(num_skills, 4, dtype=torch.float64, device=rewards.device)
    counts[:, :2].index_add_(0, skills, torch.stack([attempted, success], 1).double())
    groups = torch.stack([torch.ones_like(highest), highest > lowest], 1).double()
    counts[:, 2:].index_add_(0, skills[::num_generations], groups)
    return torch.stack([attempted, success]), counts


def gate_counts(
    own_B2: Tensor,
    skills_B: Tensor,
    asked_BK: Tensor,
    open_BK: Tensor,
    again_BK2: Tensor,
    num_generations: int,
    num_skills: int,
) -> Tensor:
    """Count what the gate saw, per skill and teacher, over all processes.

    Args:
        own_B2: Whether a completion is an attempt of the student's, and whether it succeeded.
        skills_B: The index of each completion's skill.
        asked_BK: The teachers that were asked to answer the prompt.
        open_BK: Those that answered it rightly.
        again_BK2: Whether one was asked once more, and was right again; at one completion of each prompt.
        num_generations: Completions per prompt; groups are consecutive.
        num_skills: S.

    Returns:
        `[S, K, 6]` float64: prompts asked, prompts answered rightly, on the latter the student's attempts and
        successes, and of the latter those asked once more and answered rightly again.
    """
    counts = torch.zeros(num_skills, asked_BK.shape[1], 6, dtype=torch.float64, device=open_BK.device)
    prompts = torch.stack([asked_BK, open_BK], dim=-1)[::num_generations].double()
    counts[..., :2].index_add_(0, skills_B[::num_generations], prompts)
    own = open_BK[..., None] * own_B2[:, None].double()
    counts[..., 2:4].index_add_(0, skills_B, own)
    counts[..., 4:].index_add_(0, skills_B, again_BK2.double())
    return counts
