"""Counts over a rollout: attempts, successes, informative groups, and what the gate decided.

Shapes: A completions of all processes, G groups, R rewards, K teachers, S skills.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rld.controllers.statistics import AttemptCounts, GateCounts
from rld.errors import DataError
from rld.rollout.gate_questions import GateVerdict
from rld.rollout.rewards import DEFAULT_RULE, SuccessRule
from rld.types import Row, skill_of


def skill_ids(rows: Sequence[Row], skills: Sequence[str]) -> Tensor:
    """Return the index of each row's skill, one per row.

    Raises:
        DataError: a row has a skill that is not among `skills`.
    """
    labels = [skill_of(row) for row in rows]
    unknown = sorted(set(labels) - set(skills))
    if unknown:
        raise DataError(f"rows have the skill {unknown[0]!r}, which is none of {list(skills)}; name it in `skills`")
    index = {skill: s for s, skill in enumerate(skills)}
    return torch.tensor([index[label] for label in labels])


class Attempts(NamedTuple):
    """Attempts of the student at prompts, over all processes."""

    skills_A: Tensor
    """The index of each completion's skill."""
    levels_A: Tensor
    """The level of its prompt."""
    attempted_A: Tensor
    """Whether it is an attempt, bool."""
    succeeded_A: Tensor
    """Whether it succeeded, bool."""

    @classmethod
    def concatenated(cls, parts: Sequence[Attempts]) -> Attempts:
        """Return the attempts of all parts, in their order."""
        return cls(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def counts(self, num_skills: int) -> AttemptCounts:
        """Count sampled completions, attempts and successes per skill, and no groups."""
        counts = AttemptCounts.zeros(num_skills, 0, self.skills_A.device)
        counts.sampled_S.index_add_(0, self.skills_A, torch.ones_like(self.attempted_A, dtype=torch.float64))
        counts.attempts_S.index_add_(0, self.skills_A, self.attempted_A.double())
        counts.successes_S.index_add_(0, self.skills_A, self.succeeded_A.double())
        return counts


class GroupOutcomes(NamedTuple):
    """Which completions are attempts of the student, which of them succeeded, and the counts per skill."""

    attempted_A: Tensor
    """Completions that the student sampled and that the verifier applies to, bool."""
    succeeded_A: Tensor
    """Of these, those that the verifier calls correct, bool."""
    counts: AttemptCounts


def group_counts(
    rewards_AR: Tensor,
    weights_R: Tensor,
    skills_A: Tensor,
    *,
    group_size: int,
    num_skills: int,
    is_sampled_A: Tensor | None = None,
    gold_groups: Collection[int] = (),
    rule: SuccessRule = DEFAULT_RULE,
) -> GroupOutcomes:
    """Count per skill what is sampled, attempts, successes and informative groups, whose weighted rewards differ.

    Args:
        rewards_AR: The rewards, NaN where one does not apply; the first is the verifier's.
        weights_R: Their weights.
        skills_A: The index of each completion's skill; the same within a group.
        group_size: Completions of a group; groups are consecutive.
        num_skills: S.
        is_sampled_A: Which completions are sampled; others are no attempts. None: all are.
        gold_groups: The numbers of the groups that are no completions of one prompt, and do not count.
        rule: Tells from the verifier's rewards which completions are correct.
    """
    attempted_A, succeeded_A = ~rewards_AR[:, 0].isnan(), rewards_AR[:, 0] >= rule.threshold
    if is_sampled_A is None:
        is_sampled_A = torch.ones_like(attempted_A)
    attempted_A, succeeded_A = attempted_A & is_sampled_A, succeeded_A & is_sampled_A
    informative = informative_groups(rewards_AR, weights_R, group_size)
    counts_G = torch.ones_like(informative, dtype=torch.float64)
    counts_G[sorted(gold_groups)] = 0.0
    counts = AttemptCounts.zeros(num_skills, 0, rewards_AR.device)
    counts.sampled_S.index_add_(0, skills_A, is_sampled_A.double())
    counts.attempts_S.index_add_(0, skills_A, attempted_A.double())
    counts.successes_S.index_add_(0, skills_A, succeeded_A.double())
    group_skills = skills_A[::group_size]
    counts.groups_S.index_add_(0, group_skills, counts_G)
    counts.informative_S.index_add_(0, group_skills, informative * counts_G)
    counts.gold_S.index_add_(0, group_skills, group_size * (1 - counts_G))
    return GroupOutcomes(attempted_A, succeeded_A, counts)


def informative_groups(rewards_AR: Tensor, weights_R: Tensor, group_size: int) -> Tensor:
    """Return which groups have completions whose weighted rewards differ, bool, one per group.

    Args:
        rewards_AR: The rewards, NaN where one does not apply.
        weights_R: Their weights.
        group_size: Completions of a group; groups are consecutive.
    """
    totals_A = (rewards_AR * weights_R.to(rewards_AR)).nansum(1).masked_fill(rewards_AR.isnan().all(1), math.nan)
    return differ_in_groups(totals_A[:, None], group_size)[:, 0]


def differ_in_groups(rewards_AR: Tensor, group_size: int) -> Tensor:
    """Return in which groups each reward has different values, bool, `[G, R]`; NaN is no value.

    Args:
        rewards_AR: The rewards; groups are consecutive.
        group_size: Completions of a group.
    """
    groups_GAR = rewards_AR.view(len(rewards_AR) // group_size, group_size, rewards_AR.shape[1])
    return groups_GAR.nan_to_num(nan=-math.inf).amax(1) > groups_GAR.nan_to_num(nan=math.inf).amin(1)


def gate_counts(
    verdict: GateVerdict,
    needed_AK: Tensor,
    skills_A: Tensor,
    *,
    attempted_A: Tensor,
    succeeded_A: Tensor,
    group_size: int,
    skills: Sequence[str],
) -> GateCounts:
    """Count the gate's verdict per skill and teacher; one that is assumed or missing says nothing of the teacher.

    Args:
        verdict: The gate's, over all processes.
        needed_AK: The teachers that had to answer the prompt.
        skills_A: The index of each completion's skill.
        attempted_A: Which completions are attempts of the student.
        succeeded_A: Which attempts succeeded.
        group_size: Completions of a prompt; groups are consecutive.
        skills: The skills' names.
    """
    counts = GateCounts.zeros(len(skills), needed_AK.shape[1], needed_AK.device)
    prompt_skills, open_AK, is_counted_AK = skills_A[::group_size], verdict.open_BK, needed_AK & verdict.has_answer_BK
    counts.prompts_SK.index_add_(0, prompt_skills, is_counted_AK[::group_size].double())
    counts.correct_SK.index_add_(0, prompt_skills, (open_AK & is_counted_AK)[::group_size].double())
    counts.attempts_SK.index_add_(0, skills_A, open_AK * attempted_A.double()[:, None])
    counts.successes_SK.index_add_(0, skills_A, open_AK * succeeded_A.double()[:, None])
    for k, answers in enumerate(verdict.second_K):
        for answer in answers:
            counts.resampled_SK[skills.index(answer.skill), k] += 1
            counts.resampled_correct_SK[skills.index(answer.skill), k] += answer.is_correct
    return counts
