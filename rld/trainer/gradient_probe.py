"""Noise and direction of each signal's gradient, and the direction that gold answers ask for.

Measured only for controllers that require it, in the last update before a tick. Each process sketches the gradients of
its own completions. A group of completions has one number in all processes and micro-batches, so the sums over
processes are the same in each of them.

Shapes: B completions, T completion tokens, S prompt and completion tokens, H width, N answer tokens, D sketch, P groups
of an update, G signals, K skills.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from rld.controllers.observation import GradientStats
from rld.controllers.runtime import ControllerRuntime
from rld.errors import RecipeError
from rld.models.backbone import hidden_states
from rld.models.heads import LMHead
from rld.models.prompt_sharing import PromptSharingLayout
from rld.models.prompting import PromptEncoder
from rld.models.self_check import evaluating
from rld.rollout.batch import RolloutBatch
from rld.rollout.gold import first_gold_rows, gold_texts
from rld.trainer.gradient_sketch import SKETCH_SIZE, gradient_stats, likelihood_gradient, random_signs, sketch
from rld.trainer.sharding import whole_student
from rld.trainer.skill_names import require_row_skills
from rld.types import SIGNALS, Row, Signal
from rld.utils.tensors import pad_prompts_and_completions


class GradientProbe:
    """Sums sketches of the signals' gradients over one update and turns them into statistics of each skill.

    Args:
        runtime: Says in which update to measure; its number of ticks seeds the sketch.
        student: The student without wrappers.
        whole_student: Makes its weights whole on each process.
        gold: Gold answers whose gradient is compared with the signals'. None: no comparison.
        num_groups: Groups of an update at most, over all processes: those of each rollout that it reads.
        first_group: Returns the number of the first group of the rollout at hand among them.
        accelerator: Sums over processes.
    """

    def __init__(
        self,
        runtime: ControllerRuntime,
        student: PreTrainedModel,
        whole_student: Callable[[], AbstractContextManager[Any]],
        gold: GoldAnswerGradients | None,
        *,
        num_groups: int,
        first_group: Callable[[], int],
        accelerator: Accelerator,
    ) -> None:
        self.runtime, self.student, self.gold, self.accelerator = runtime, student, gold, accelerator
        self._whole_student = whole_student
        self._num_groups, self._first_group = num_groups, first_group
        self._clear()

    @classmethod
    def for_trainer(cls, trainer: Any, encoder: PromptEncoder, rows: Sequence[Row]) -> GradientProbe | None:
        """The probe that the controller of an `RLDTrainer` requires; None if it requires none, or without teachers.

        Args:
            trainer: The trainer.
            encoder: The student's.
            rows: Rows with a gold `answer`; of each skill the first ones are used that the student can write in a
                completion, as many as the controller says.

        Raises:
            RecipeError: the controller requires gold answers, and no row has one that the student can write.
            DataError: a row has a skill that the controller lacks.
        """
        runtime: ControllerRuntime = trainer.runtime
        accelerator = trainer.accelerator
        require_row_skills("gold_rows", rows, runtime.skills)
        required, gold = runtime.controller.required_measurements, None
        if not required.gradients or not runtime.teachers:
            return None
        if required.gold_rows:
            longest = trainer.args.max_completion_length
            gold_rows = first_gold_rows(rows, runtime.skills, required.gold_rows, encoder, longest)
            gold = GoldAnswerGradients(gold_rows, encoder, accelerator)
        args = trainer.args
        # An update may begin in one rollout and end in another one.
        num_rollouts = 1 + math.ceil((args.gradient_accumulation_steps - 1) / args.micro_batches_per_rollout)

        def first_group() -> int:
            number: int = trainer._step // args.micro_batches_per_rollout % num_rollouts * args.prompts_per_rollout
            return number

        return cls(
            runtime,
            trainer._student,
            functools.partial(whole_student, trainer),
            gold,
            num_groups=num_rollouts * args.prompts_per_rollout,
            first_group=first_group,
            accelerator=accelerator,
        )

    def _clear(self) -> None:
        groups, signals, device = self._num_groups, len(SIGNALS), self.accelerator.device
        self._sums_PGD = torch.zeros(groups, signals, SKETCH_SIZE, dtype=torch.float64, device=device)
        self._counts_PG = torch.zeros(groups, signals, dtype=torch.float64, device=device)
        self._rows_PK = torch.zeros(groups, len(self.runtime.skills), dtype=torch.float64, device=device)
        self._signs: Tensor | None = None

    def _signs_2HD(self, width: int) -> Tensor:
        """The random signs of this tick's sketches."""
        if self._signs is None:
            self._signs = random_signs(width, self.runtime.ticks).to(self.accelerator.device)
        return self._signs

    def add(
        self,
        signal: Signal,
        batch: RolloutBatch,
        hidden_BTH: Tensor,
        *,
        gradient_BTH: Tensor | None,
        counts_BT: Tensor,
    ) -> None:
        """Add a signal's gradients on a micro-batch.

        Args:
            signal: Which one.
            batch: Has `group_ids` and `skill_ids` `[B]`.
            hidden_BTH: The student's last states, as its head saw them.
            gradient_BTH: Gradient of the signal's unweighted sum over tokens with respect to them; None: it is 0.
            counts_BT: Tokens over which the signal's loss is a mean.
        """
        groups_B, i = batch["group_ids"] + self._first_group(), SIGNALS.index(signal)
        ones_B = torch.ones(len(groups_B), dtype=torch.float64, device=groups_B.device)
        self._rows_PK.index_put_((groups_B, batch["skill_ids"]), ones_B, accumulate=True)
        self._counts_PG[:, i].index_add_(0, groups_B, counts_BT.double().sum(1))
        if gradient_BTH is not None:
            signs_2HD = self._signs_2HD(hidden_BTH.shape[-1])
            for group, hidden_TH, gradient_TH in zip(groups_B.tolist(), hidden_BTH, gradient_BTH, strict=True):
                self._sums_PGD[group, i] += sketch(hidden_TH, gradient_TH, signs_2HD).double().sum(0)

    def take_gradient_stats(self) -> tuple[dict[str, GradientStats], int]:
        """The statistics of the update at hand, by skill, and start anew.

        Returns:
            The statistics, the same in all processes and empty unless this update was to be measured; and the tokens of
            gold answers, with their prompts, that the student read for them, over all processes.
        """
        if not self.runtime.measures_gradients:
            return {}, 0
        gold_KD = None
        if self.gold is not None:
            width = self.student.config.get_text_config().hidden_size
            with self._whole_student():
                sketches_KD = self.gold.sketches(self.student, self._signs_2HD(width), self.runtime.skills)
            gold_KD = self._sum(sketches_KD)
        sums_PGD, counts_PG = self._sum(self._sums_PGD), self._sum(self._counts_PG)
        skills_P = self._sum(self._rows_PK).argmax(1)
        self._clear()
        stats = {
            skill: gradient_stats(sums_PGD, counts_PG, skills_P == k, None if gold_KD is None else gold_KD[k])
            for k, skill in enumerate(self.runtime.skills)
        }
        return stats, 0 if self.gold is None else self.gold.num_tokens

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value, reduction="sum")
        return total.cpu()


class GoldAnswerGradients:
    """Gold answers of training rows, and the gradient of their negative log-likelihood under the student.

    Args:
        rows: Rows with `prompt` and `answer` by skill, the same in all processes, which share them out.
        encoder: The student's.
        accelerator: Knows this process's number.

    Raises:
        RecipeError: there are no rows.
    """

    def __init__(self, rows: Mapping[str, Sequence[Row]], encoder: PromptEncoder, accelerator: Accelerator) -> None:
        if not rows:
            raise RecipeError(
                "controller: gradient_alignment needs gold answers, and no row of gold_rows has one that the student "
                "can write"
            )
        self._texts = {skill: gold_texts(of_skill, encoder) for skill, of_skill in rows.items()}
        self.num_tokens = sum(
            len(prompt) + len(answer) for of_skill in self._texts.values() for prompt, answer in of_skill
        )
        """Tokens of all prompts and answers."""
        self._accelerator = accelerator

    @torch.no_grad()
    def sketches(self, student: PreTrainedModel, signs_2HD: Tensor, skills: list[str]) -> Tensor:
        """Sketch each skill's gradient, summed over the answers of this process, `[K, D]`."""
        share = slice(self._accelerator.process_index, None, self._accelerator.num_processes)
        total_KD = signs_2HD.new_zeros(len(skills), SKETCH_SIZE, dtype=torch.float64)
        with evaluating(student):
            for k, skill in enumerate(skills):
                texts = self._texts.get(skill, [])[share]
                if texts:
                    hidden_NH, targets_N = _answer_states(student, texts)
                    gradient_NH = likelihood_gradient(LMHead.of(student).detach(), hidden_NH, targets_N)
                    total_KD[k] = sketch(hidden_NH, gradient_NH, signs_2HD).double().sum(0)
        return total_KD


def _answer_states(student: PreTrainedModel, texts: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """The student's last states at the positions that predict the answers' tokens, `[N, H]`, and those tokens `[N]`."""
    ids_BS, attention_BS, mask_BT = (x.to(student.device) for x in pad_prompts_and_completions(texts))
    num_columns, answers_BT = mask_BT.shape[1], mask_BT.bool()
    layout = PromptSharingLayout.unshared(student)
    states = hidden_states(
        student, ids_BS, attention_BS, num_tokens=num_columns, rows_per_forward=len(texts), layout=layout
    )
    return states.last_BTH[answers_BT], ids_BS[:, -num_columns:][answers_BT]
