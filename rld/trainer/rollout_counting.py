"""Counts over a rollout and an update: tokens, operations, and attempts, of which controller and curriculum are told.

Shapes: B completions of this process, A completions of all processes, R rewards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from accelerate.utils import gather
from torch import Tensor

from rld.controllers.runtime import ControllerRuntime
from rld.controllers.statistics import UpdateStatistics
from rld.data.prompt_stream import PromptStream
from rld.rollout.batch import RolloutBatch, gold_tokens
from rld.rollout.counts import Attempts, group_counts
from rld.rollout.record import RolloutRecord, RolloutTotals
from rld.utils.flops import FlopMeter, training_flops


class RolloutTokens(NamedTuple):
    """Tokens of a rollout's forwards of the student, by what they are for."""

    sampled: int
    """Tokens that it sampled."""
    read: int
    """Prompts that it read to sample, and completions with their prompts for old and reference log-probabilities."""
    gold: int
    """Gold answers, with their prompts, that it read for these too."""


def rollout_tokens(batch: RolloutBatch, record: RolloutRecord, num_prefilled: int) -> RolloutTokens:
    """Return the tokens of a rollout of this process.

    Args:
        batch: TRL's rollout; with gold answers these are marked.
        record: Its record.
        num_prefilled: Prompt tokens that were read once for several completions; 0: each completion's were read.
    """
    num_sampled, num_prompts = _sampled_tokens(batch, record, num_prefilled)
    num_gold = sum(gold_tokens(batch, *read) for read in record.reads) if "is_gold" in batch else 0
    return RolloutTokens(num_sampled, num_prompts + sum(count for count, _ in record.reads) - num_gold, num_gold)


def _sampled_tokens(batch: RolloutBatch, record: RolloutRecord, num_prefilled: int) -> tuple[int, int]:
    """Return the tokens that this process sampled for a rollout, and those of prompts that it read to sample them."""
    if record.refilled is not None:
        return record.refilled.num_tokens, num_prefilled or record.refilled.num_prompt_tokens
    is_sampled_B = ~record.is_fixed_B.to(batch["completion_mask"].device)
    num_tokens = int(batch["completion_mask"][is_sampled_B].sum())
    # A rollout that was sampled elsewhere, such as by vLLM, has read its prompts there.
    return num_tokens, num_prefilled or int(batch["prompt_mask"][is_sampled_B].sum())


def count_attempts(
    record: RolloutRecord,
    skills_A: Tensor,
    weights_R: Tensor,
    lengths_A: Tensor,
    *,
    runtime: ControllerRuntime,
    stream: PromptStream | None,
    totals: RolloutTotals,
) -> None:
    """Count a rollout's attempts, those at replaced prompts too, and tell the controller and the curriculum of them.

    Args:
        record: The rollout, which gets to know which completions are attempts and which succeeded.
        skills_A: The index of each completion's skill.
        weights_R: Weights of the rewards.
        lengths_A: The tokens of each completion.
        runtime: The controller's.
        stream: Has the curriculum. None: there is none.
        totals: Counts replaced groups.
    """
    assert record.rewards_AR is not None
    record.attempted_A, record.succeeded_A, counts = group_counts(
        record.rewards_AR,
        weights_R,
        skills_A,
        group_size=record.group_size,
        num_skills=len(record.skills),
        is_sampled_A=record.is_sampled_A,
        gold_groups=record.gold_groups,
        rule=record.rule,
    )
    counts.attempt_tokens_S.index_add_(0, skills_A, lengths_A.double() * record.attempted_A)
    counts.success_tokens_S.index_add_(0, skills_A, lengths_A.double() * record.succeeded_A)
    levels_A = torch.zeros_like(skills_A)  # without a stream a column `level` is the user's own
    if stream is not None:
        levels_A = gather(record.levels_B.to(skills_A.device))
    attempts = [Attempts(skills_A, levels_A, record.attempted_A, record.succeeded_A)]
    if record.refilled is not None:
        attempts += record.refilled.rejected
        totals.add_refill(record, num_same=int((counts.groups_S - counts.informative_S).sum()))
        for rejected in record.refilled.rejected:
            counts += rejected.counts(len(record.skills))
    total = Attempts.concatenated(attempts)
    counts.levels_S.index_add_(0, total.skills_A, total.levels_A.double() * total.attempted_A)
    runtime.add_attempt_counts(counts)
    if stream is not None:
        stream.count(record.skills, *total)


def count_update(
    flop_meter: FlopMeter, size: int, statistics: UpdateStatistics, probed: float, *, runtime: ControllerRuntime
) -> None:
    """Count the student's operations in an update, and tell the controller of the stage's.

    Args:
        flop_meter: Gets them.
        size: The student's parameters.
        statistics: The tokens of the update, over all processes.
        probed: Operations of what a controller had the student read.
        runtime: The controller's.
    """
    num_tokens, num_gold = int(statistics.student_tokens.item()), int(statistics.gold_tokens.item())
    flop_meter.add_student("updates", training_flops(size, num_tokens - num_gold))
    flop_meter.add_student("gold", training_flops(size, num_gold))
    flop_meter.add_student("probes", probed)
    runtime.set_flops(flop_meter.by_source)
