"""What the teachers add to a rollout: who may teach where, what each says, and who is listened to.

The steps come in this order: `gate`, `score`, `drop`, `choose`, `silence`, `cost`.

Shapes: B completions of this process, T completion tokens, K teachers, S skills.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor

from rld.controllers.observation import TeacherInfo
from rld.controllers.runtime import ControllerRuntime
from rld.errors import TeacherDown
from rld.losses.combination import AnyCombination
from rld.losses.policy import mean_likelihood
from rld.rollout.batch import RolloutBatch, loss_mask, taught_share
from rld.rollout.counts import gate_counts, places
from rld.rollout.gate import TeacherGate
from rld.rollout.verifier import successes
from rld.teachers.ensemble import TeacherEnsemble, TokenCounts
from rld.teachers.teacher import Teacher
from rld.types import Event
from rld.utils.flops import FlopMeter, forward_flops

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TeacherScoringOptions:
    """What the trainer's configuration says of teachers.

    Attributes:
        combination: How several teachers become one target.
        teacher_reward: Weight of the teacher-scored reward; 0: there is none.
        teach_on: The completions that teachers teach on, `all` or `failed`.
        batch_size: Completions per forward of a teacher.
        has_policy: Whether the policy signal takes part.
    """

    combination: AnyCombination
    teacher_reward: float
    teach_on: str
    batch_size: int
    has_policy: bool


def teacher_infos(teachers: Iterable[Teacher]) -> list[TeacherInfo]:
    """Return what a controller's runtime has to know of teachers."""
    return [TeacherInfo(str(t.name), None if t.skills is None else tuple(t.skills), dict(t.verified)) for t in teachers]


class TeacherScoring:
    """Runs the teachers that a rollout needs, and adds what they say to it, batch first."""

    def __init__(
        self,
        options: TeacherScoringOptions,
        panel: TeacherEnsemble,
        steering: ControllerRuntime,
        gate: TeacherGate | None,
        accelerator: Accelerator,
        flop_meter: FlopMeter,
    ) -> None:
        self.options, self.panel, self.steering = options, panel, steering
        self.accelerator, self._gate = accelerator, gate
        self._combination = options.combination
        self._flop_meter, self._num_asked = flop_meter, 0
        self._dropped: set[int] = set()
        self._token_counts: list[TokenCounts] = []
        panel.observers.append(self._read_teacher)

    def _read_teacher(self, k: int) -> None:
        """Read a teacher anew, after what it teaches or its weights have changed."""
        self.steering.set_teachers(teacher_infos(self.panel.teachers))
        if self._gate is not None:
            self._gate.forget(k)

    def _leave_open(self, output: RolloutBatch) -> None:
        """Let each teacher with weight on a skill teach on all its prompts; adds `teacher_weights` `[B, K]`."""
        skills_B = output["skill_ids"]
        shares_SK = self._combination.shares(self.steering.teachers_SK)
        needed_SK = self.steering.teachers_needed(self.options.teacher_reward, shares_SK)
        self._rows_BK = needed_SK.to(skills_B.device)[skills_B]
        output["teacher_weights"] = shares_SK.to(skills_B.device)[skills_B]
        output["response_on"] = torch.tensor(self.steering.is_active("response"))
        output["feature_on"] = torch.tensor(self.steering.is_active("feature"))

    def gate(self, inputs: Rows, output: RolloutBatch, own_B2: Tensor | None, group: int) -> None:
        """Let teachers teach on the prompts that they answer rightly; the others' weight goes to those that may.

        Adds `group_ids` `[B]` too: the number of each completion's prompt in the rollout, over all processes.

        Args:
            own_B2: Over all processes, whether each completion is an attempt of the student's, and a success. None: it
                is an evaluation, in which nobody is asked and nothing counted.
            group: Completions per prompt.
        """
        self._leave_open(output)
        output["group_ids"] = places(len(inputs), self.accelerator) // group
        if self._gate is None or own_B2 is None:
            return
        before = torch.tensor([self._gate.flops, self._gate.num_tokens], dtype=torch.float64)
        open_BK = self._gate.open(inputs, self._rows_BK)
        spent = torch.tensor([self._gate.flops, self._gate.num_tokens], dtype=torch.float64) - before
        flops, num_tokens = self._sum(spent).tolist()
        self._flop_meter.add("gate", flops)
        self._num_asked += int(num_tokens)
        output["teacher_weights"] = _passed_on(output["teacher_weights"], open_BK)
        seen = gather(output["skill_ids"]), gather(self._rows_BK), gather(open_BK), gather(self._gate.again_BK2)
        counts = gate_counts(own_B2, *seen, group, len(self.steering.skills))
        self.steering.add_gate_counts(counts)
        self._gate.count_again(self.steering.skills, counts.resampled_SK)
        self._rows_BK = self._rows_BK & open_BK

    def score(self, inputs: Rows, output: RolloutBatch, rewards_BR: Tensor, temperature: float) -> None:
        """Run each needed teacher once and add what it says (`TeacherEnsemble.score`, `.sampled_scores`).

        Args:
            rewards_BR: Over all processes; the first is the verifier's.
        """
        prompts = [row["prompt"] for row in inputs]
        if not self._combination.compares:  # or it is what they say of right completions that is compared
            self._rows_BK = self._rows_BK & self._taught(rewards_BR, len(inputs))[:, None]
        carried = cast(dict[str, Any], output)  # the ensemble adds a teacher's tensors under keys that have its number
        self._token_counts = self.panel.score(
            carried,
            self._rows_BK,
            prompts=prompts,
            temperature=temperature,
            rows_per_forward=self.options.batch_size,
        )
        if self.options.teacher_reward or self._combination.compares:
            carried |= self.panel.sampled_scores(carried, temperature)

    def drop(self, output: RolloutBatch, step: int) -> list[Event]:
        """Go on without teachers that have stopped answering: the others get their weight, and an event tells.

        Raises:
            TeacherDown: none is left, and there is nothing else to learn from.
        """
        teachers = self.panel.teachers
        down_K = self._sum(torch.tensor([float(teacher.is_down) for teacher in teachers])) > 0  # for any process
        events = []
        for k in sorted(set(down_K.nonzero().flatten().tolist()) - self._dropped):
            self._dropped.add(k)
            self.panel.retire(k, is_down=True)
            about = "its server stopped answering", "it is optional, so the others take its weight"
            events.append(Event(step, "teacher dropped", "all skills", str(teachers[k].name), *about))
        if events and down_K.all() and not self.options.has_policy:
            raise TeacherDown(
                f"teacher '{events[-1].about}' was the last that answered, and without the policy signal there is "
                "nothing else to learn from; go on from the last checkpoint when its server is back"
            )
        if events:
            kept_BK = (~down_K).expand(self._rows_BK.shape)
            output["teacher_weights"] = _passed_on(output["teacher_weights"], kept_BK)
            output["teacher_tokens"] = output["teacher_tokens"] & kept_BK[..., None]
            self._rows_BK = self._rows_BK & kept_BK
        return events

    def choose(self, output: RolloutBatch, rewards_BR: Tensor, group: int) -> None:
        """Let the combination decide by what was said, and count the tokens that are taught (`num_taught`).

        Args:
            rewards_BR: Over all processes; the first is the verifier's.
            group: Completions per prompt, which may lie on several processes.
        """
        if self._combination.compares:
            likelihood_BK = mean_likelihood(output["teacher_scores"], output["teacher_spans"], loss_mask(output))
            weights_BK = self._combination.chosen(
                gather(output["teacher_weights"]), gather(likelihood_BK), successes(rewards_BR), group
            )
            first = self.accelerator.process_index * len(likelihood_BK)
            output["teacher_weights"] = weights_BK[first : first + len(likelihood_BK)]
        taught_B = self._taught(rewards_BR, len(output["skill_ids"]))
        output["teacher_weights"] = output["teacher_weights"] * taught_B[:, None]
        taught_BT = loss_mask(output) * (taught_share(output) > 0)
        output["num_taught"] = self._sum(taught_BT.sum())

    def _taught(self, rewards_BR: Tensor, num_rows: int) -> Tensor:
        """Which of this process's completions may be taught on: all, or those that the verifier does not give 1."""
        if self.options.teach_on == "all":
            return torch.ones(num_rows, dtype=torch.bool, device=rewards_BR.device)
        return ~successes(rewards_BR)[self.accelerator.process_index * num_rows :][:num_rows]

    def silence(self, output: RolloutBatch, gold_B: Tensor) -> None:
        """Keep gold answers out of the teacher-scored reward: what the student did not sample can't be rewarded."""
        if "teacher_spans" in output:
            output["teacher_spans"][gold_B] = -1

    def cost(self, output: RolloutBatch) -> tuple[int, int]:
        """What the rollout cost over all processes.

        Returns:
            Tokens that teachers were run on, answers to the gate included; and how many more it would have been
            without a gate, had all taught all their skills and nothing been cached.
        """
        lengths_B1 = (output["prompt_mask"].sum(1) + output["completion_mask"].sum(1))[:, None]
        could_BK = self.steering.teaches_SK.to(lengths_B1.device)[output["skill_ids"]]
        cached_K = torch.tensor([count.cached for count in self._token_counts], device=lengths_B1.device)
        run_K = (self._rows_BK * lengths_B1).sum(0) - cached_K
        sums = torch.stack([run_K, (could_BK * lengths_B1).sum(0)])
        scored, possible = self._sum(sums).tolist()
        computed = self._sum(torch.tensor([count.computed for count in self._token_counts])).tolist()
        for slot, num_tokens in zip(self.panel.slots, computed, strict=True):
            self._flop_meter.add("teachers", forward_flops(slot.num_parameters, num_tokens))
        num_scored = sum(scored) + self._num_asked
        self._num_asked = 0
        return num_scored, sum(possible) - num_scored

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")
        return total


def _passed_on(weights_BK: Tensor, open_BK: Tensor) -> Tensor:
    """Teacher weights with those of shut-out teachers passed on to the others of the row."""
    kept_BK = weights_BK * open_BK
    return kept_BK / kept_BK.sum(1, keepdim=True).clamp(min=1e-12) * weights_BK.sum(1, keepdim=True)
