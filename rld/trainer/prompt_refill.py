"""Prompts whose completions all got the same reward are replaced before an update, as in DAPO's dynamic sampling.

Shapes: B completions of this process, N of them that are sampled at a time, A completions of all processes, P prompts
of a rollout, R rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor

from rld.data.prompt_stream import PromptStream
from rld.errors import RecipeError
from rld.rollout.counts import Attempts, informative_groups
from rld.rollout.record import Refilled, RolloutRecord
from rld.types import Row


class Samples(NamedTuple):
    """Completions of N rows of this process, and the rewards of those of all processes."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    rewards_AR: Tensor
    feedback: list[str] | None
    """What rewards say of each of this process's completions. None: no reward has said anything."""


class PromptRefill:
    """Samples a rollout in which prompts that would teach the policy nothing are replaced, each at most `times` times.

    A prompt is replaced when the weighted rewards of its completions are all the same: all right, or all wrong. The
    curriculum picks the next one. What is still uninformative after the last replacement stays.

    Source: Yu et al. 2025 (DAPO, arXiv:2503.14476), section 3.2, where sampling goes on until the batch is full.

    Args:
        times: How often each prompt of a rollout may be replaced.
        stream: Draws the new rows.
        accelerator: Counts over processes.
    """

    def __init__(self, times: int, stream: PromptStream, accelerator: Accelerator) -> None:
        self.times, self.stream, self.accelerator = times, stream, accelerator

    @classmethod
    def for_trainer(cls, trainer: Any) -> PromptRefill | None:
        """Return the refill of an `RLDTrainer`; None where prompts are not replaced.

        Raises:
            RecipeError: prompts cannot be replaced in this trainer.
        """
        if not trainer.args.refill:
            return None
        if trainer.stream is None:
            raise RecipeError("refill: a curriculum picks the prompts that replace others; pass curriculum=...")
        if "policy" not in trainer.runtime.signals:
            raise RecipeError("refill: it replaces prompts that teach the policy nothing, and signals has no policy")
        if trainer.use_vllm or trainer.tools or trainer.rollout_func is not None or trainer.log_completions:
            raise RecipeError(
                "refill: it replaces prompts whose completions transformers samples; leave out vLLM, tools, "
                "rollout_func and log_completions"
            )
        return cls(trainer.args.refill, trainer.stream, trainer.accelerator)

    def fill(self, record: RolloutRecord, weights_R: Tensor, sample: Callable[[list[Row]], Samples]) -> RolloutRecord:
        """Return the record of a rollout with its final rows, their completions and rewards, and what was replaced.

        Args:
            record: The rollout, with the rows that the curriculum picked first.
            weights_R: Weights of the rewards.
            sample: Samples a completion for each row of a list that has the same length in all processes.
        """
        groups_B, rows = record.group_ids_B.tolist(), list(record.rows)
        num_completions = len(rows) * self.accelerator.num_processes
        refilled = Refilled(completions=[[] for _ in rows])
        rewards_AR = torch.zeros(num_completions, len(weights_R), device=self.accelerator.device)
        pending = set(range(num_completions // record.group_size))
        for attempt in range(self.times + 1):
            places = [i for i, group in enumerate(groups_B) if group in pending]
            rewards_AR = self._sample(sample, rows, places, record.first_row, refilled, rewards_AR)
            informative = informative_groups(rewards_AR, weights_R, record.group_size).tolist()
            pending = {group for group in pending if not informative[group]}
            if attempt == self.times or not pending:
                break
            rejected = replace(record, rows=rows, rewards_AR=rewards_AR)
            refilled.rejected.append(_attempts(rejected, pending, self.accelerator.device))
            for i in range(len(rows)):
                if groups_B[i] in pending:
                    rows[i] = self.stream.replacement(record.number, groups_B[i], attempt)
        return replace(record, rows=rows, rewards_AR=rewards_AR, refilled=refilled)

    def _sample(
        self,
        sample: Callable[[list[Row]], Samples],
        rows: Sequence[Row],
        places: Sequence[int],
        first_row: int,
        refilled: Refilled,
        rewards_AR: Tensor,
    ) -> Tensor:
        """Sample completions at `places` of this process; return the rewards of all, with the new ones in their places.

        Rewards are gathered, for which all processes need as many rows: those with fewer sample their first row again.
        """
        device = self.accelerator.device
        most = int(gather(torch.tensor([len(places)], device=device)).max())
        num_more = most - len(places)
        samples = sample([rows[i] for i in [*places, *[0] * num_more]])
        refilled.num_prompt_tokens += sum(map(len, samples.prompt_ids))
        refilled.num_tokens += sum(map(len, samples.completion_ids))
        for i, ids in zip(places, samples.completion_ids, strict=False):
            refilled.completions[i] = ids
        if samples.feedback is not None or refilled.feedback is not None:
            refilled.feedback = refilled.feedback or [""] * len(rows)
            for i, text in zip(places, samples.feedback or [""] * len(places), strict=False):
                refilled.feedback[i] = text
        numbers_A = gather(torch.tensor([*(first_row + i for i in places), *[-1] * num_more], device=device))
        is_placed_A = numbers_A >= 0
        return rewards_AR.index_copy(0, numbers_A[is_placed_A], samples.rewards_AR[is_placed_A])


def _attempts(record: RolloutRecord, groups: set[int], device: torch.device) -> Attempts:
    """Return the attempts at some of the prompts of a rollout, over all processes."""
    is_chosen_A = torch.zeros(len(record.is_correct_A), dtype=torch.bool, device=device)
    for group in groups:
        is_chosen_A[group * record.group_size : (group + 1) * record.group_size] = True
    assert record.rewards_AR is not None
    attempts = Attempts(
        skills_A=gather(record.skill_ids_B.to(device)),
        levels_A=gather(record.levels_B.to(device)),
        attempted_A=~record.rewards_AR[:, 0].isnan(),
        succeeded_A=record.is_correct_A,
    )
    return Attempts(*(values_A[is_chosen_A] for values_A in attempts))
