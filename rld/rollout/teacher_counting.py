"""Counts of what teachers do in a rollout, over all processes: tokens, operations, prompts taught, weights used.

Shapes: B completions of this process, A completions of all processes, K teachers, S skills.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor

from rld.controllers.runtime import ControllerRuntime
from rld.rollout.batch import RolloutBatch
from rld.rollout.record import RolloutRecord
from rld.teachers.ensemble import TeacherEnsemble, TeacherReading
from rld.utils.flops import Account, FlopMeter, forward_flops


@dataclass(frozen=True)
class TeacherCounts:
    """What teachers did in a rollout, over all processes.

    Attributes:
        tokens: By teacher, the tokens that it read, its answers to the gate included.
        prompts: By teacher, the prompts on whose completions it had a weight and a distribution.
        tokens_saved: Tokens that they would have read in addition without a gate, had every teacher scored all
            completions of its skills and had no log-probability come from a cache.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)
    tokens_saved: int = 0


class TeacherCounting:
    """Counts the tokens and operations of teachers.

    Args:
        ensemble: The teachers.
        runtime: Says which teacher teaches which skill.
        accelerator: Sums and gathers over processes.
        flop_meter: Gets the operations.
    """

    def __init__(
        self,
        ensemble: TeacherEnsemble,
        runtime: ControllerRuntime,
        accelerator: Accelerator,
        flop_meter: FlopMeter,
    ) -> None:
        self.ensemble, self.runtime, self.accelerator = ensemble, runtime, accelerator
        self.flop_meter = flop_meter

    @property
    def _names(self) -> list[str]:
        return [str(teacher.name) for teacher in self.ensemble.teachers]

    def computed(self, account: Account, tokens_K: Sequence[int]) -> list[int]:
        """Count the operations on tokens that went through each teacher of this process; return their sums."""
        sums_K = self._sum(torch.tensor(tokens_K)).tolist()
        for name, slot, num_tokens in zip(self._names, self.ensemble.slots, sums_K, strict=True):
            self.flop_meter.add(account, forward_flops(slot.num_parameters, num_tokens), name)
        return [int(num_tokens) for num_tokens in sums_K]

    def counts(
        self,
        batch: RolloutBatch,
        record: RolloutRecord,
        *,
        needed_BK: Tensor,
        possible_BK: Tensor,
        readings: Sequence[TeacherReading],
        gate_tokens_K: Sequence[int],
    ) -> TeacherCounts:
        """Return the counts of a rollout that teachers have scored.

        Args:
            batch: This process's rollout.
            record: Its record.
            needed_BK: Which teachers scored which completions.
            possible_BK: Which completions teachers of their skills could score: not gold answers in their place, nor
                those without what a teacher's prompt shows of the rollout.
            readings: What the teachers of this process read.
            gate_tokens_K: Tokens of each teacher's answers to the gate, over all processes.
        """
        lengths_B1 = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1))[:, None]
        lengths_BK = lengths_B1 + torch.stack([reading.extra_B for reading in readings], dim=1)
        teaches_BK = self.runtime.teaches_SK.to(lengths_BK.device)[batch["skill_ids"]] & possible_BK
        cached_K = torch.tensor([reading.cached for reading in readings], device=lengths_BK.device)
        read_K, possible_K = (needed_BK * lengths_BK).sum(0) - cached_K, (teaches_BK * lengths_BK).sum(0)
        scored_K, could_K = self._sum(torch.stack([read_K, possible_K])).tolist()
        tokens = [scored + answered for scored, answered in zip(scored_K, gate_tokens_K, strict=True)]
        taught_AK = gather((batch["teacher_weights"] > 0) & batch["teacher_tokens"].any(-1))
        groups_A = torch.arange(len(taught_AK), device=taught_AK.device) // record.group_size
        prompts_K = [groups_A[taught_A].unique().numel() for taught_A in taught_AK.T]
        names = self._names
        return TeacherCounts(
            dict(zip(names, tokens, strict=True)), dict(zip(names, prompts_K, strict=True)), sum(could_K) - sum(tokens)
        )

    def used_weights(self, batch: RolloutBatch, is_own_B: Tensor, skills: Sequence[str]) -> dict[str, float]:
        """Return the mean weight of each teacher on the completions of each skill, those of gold groups left out."""
        weights_BK = batch["teacher_weights"]
        ones_B1 = is_own_B[:, None].to(weights_BK)
        sums_SK1 = torch.zeros(len(skills), weights_BK.shape[1] + 1, dtype=torch.float64, device=weights_BK.device)
        sums_SK1.index_add_(0, batch["skill_ids"], torch.cat([weights_BK, ones_B1], dim=1).double())
        used = {}
        for skill, (*weights, count) in zip(skills, self._sum(sums_SK1).tolist(), strict=True):
            for name, weight in zip(self._names, weights, strict=True):
                if count:
                    used[f"teacher/{name}/used/{skill}"] = weight / count
        return used

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")
        return total
