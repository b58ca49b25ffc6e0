"""Where the signals pull the student, and where gold answers lie: measured for controllers that ask for it.

Only the update before a tick is looked at. Each process sketches its own completions, groups keep their number over
processes and micro-batches, and the sums over all processes are the same everywhere.

Shapes: B completions, T completion tokens, H width, D sketch, P groups of a rollout, G signals, S skills.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from rld.rollout.batch import RolloutBatch
from rld.rollout.gold import gold_completions
from rld.trainer.gradient_sketch import SIZE, gradient_stats, likelihood_gradient, signs, sketch
from rld.trainer.rld_config import RLDConfig
from rld.types import DEFAULT_SKILL, SIGNALS, Row, Signal
from rld.utils.tensors import pad_prompts_and_completions


class GradientProbe:
    """Sums sketches of one update, and turns them into what a controller sees.

    Args:
        steering: Says when to measure, and what.
        num_groups: Groups of a rollout, over all processes.
        student: The model without wrappers.
        gold: Gold answers to follow; None: none.
    """

    def __init__(
        self,
        steering: ControllerRuntime,
        num_groups: int,
        student: PreTrainedModel,
        gold: GoldAnswerGradients | None,
        accelerator: Accelerator,
    ) -> None:
        self.steering, self.student, self.gold, self.accelerator = steering, student, gold, accelerator
        self._num_groups = num_groups
        self._clear()

    @classmethod
    def asked_for(
        cls,
        args: RLDConfig,
        steering: ControllerRuntime,
        accelerator: Accelerator,
        student: PreTrainedModel,
        encoder: PromptEncoder,
        rows: Sequence[Row],
    ) -> GradientProbe | None:
        """What the controller asks for; None: nothing. `rows` are as in `GoldAnswerGradients`.

        Raises:
            RecipeError: it asks for gold answers, and no row has one.
        """
        needs = steering.controller.needs
        if not needs.pulls or not steering.teachers:
            return None
        known = encoder, args.max_completion_length, accelerator
        gold = GoldAnswerGradients(_first(rows, needs.gold, steering.skills), *known) if needs.gold else None
        return cls(steering, args.prompts_per_rollout, student, gold, accelerator)

    def _clear(self) -> None:
        groups, signals, device = self._num_groups, len(SIGNALS), self.accelerator.device
        self._sums_PGD = torch.zeros(groups, signals, SIZE, dtype=torch.float64, device=device)
        self._counts_PG = torch.zeros(groups, signals, dtype=torch.float64, device=device)
        self._rows_PS = torch.zeros(groups, len(self.steering.skills), dtype=torch.float64, device=device)
        self._signs: Tensor | None = None

    def _signs_2HD(self, width: int) -> Tensor:
        """This tick's signs."""
        if self._signs is None:
            self._signs = signs(width, self.steering.ticks).to(self.accelerator.device)
        return self._signs

    def add(
        self,
        signal: Signal,
        batch: RolloutBatch,
        hidden_BTH: Tensor,
        gradient_BTH: Tensor | None,
        counts_BT: Tensor,
    ) -> None:
        """Add a signal's gradients on a micro-batch.

        Args:
            signal: Which one.
            batch: Has `group_ids` and `skill_ids` `[B]`.
            hidden_BTH: The student's last states, as its head saw them.
            gradient_BTH: Gradient of the signal's unweighted sum over tokens; None where it has none.
            counts_BT: Tokens over which the signal's loss is a mean.
        """
        groups_B, i = batch["group_ids"], SIGNALS.index(signal)
        ones_B = torch.ones(len(groups_B), dtype=torch.float64, device=groups_B.device)
        self._rows_PS.index_put_((groups_B, batch["skill_ids"]), ones_B, accumulate=True)
        self._counts_PG[:, i].index_add_(0, groups_B, counts_BT.double().sum(1))
        if gradient_BTH is not None:
            signs_2HD = self._signs_2HD(hidden_BTH.shape[-1])
            for group, hidden_TH, gradient_TH in zip(groups_B.tolist(), hidden_BTH, gradient_BTH, strict=True):
                self._sums_PGD[group, i] += sketch(hidden_TH, gradient_TH, signs_2HD).double().sum(0)

    def take(self) -> tuple[dict[str, GradientStats], int]:
        """What was measured since the last call, by skill, and the tokens read for it over all processes."""
        if not self.steering.measures_gradients:
            return {}, 0
        gold_SD = None
        if self.gold is not None:
            width = self.student.config.get_text_config().hidden_size
            gold_SD = self._sum(self.gold.sketches(self.student, self._signs_2HD(width), self.steering.skills))
        sums_PGD, counts_PG = self._sum(self._sums_PGD), self._sum(self._counts_PG)
        skills_P = self._sum(self._rows_PS).argmax(1)
        self._clear()
        found = {
            skill: gradient_stats(sums_PGD, counts_PG, skills_P == s, None if gold_SD is None else gold_SD[s])
            for s, skill in enumerate(self.steering.skills)
        }
        return found, 0 if self.gold is None else self.gold.num_tokens

    def _sum(self, value: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(value, reduction="sum")
        return total.cpu()


def _first(rows: Sequence[Row], count: int, skills: Sequence[str]) -> list[Row]:
    """The first rows of each skill that have an answer."""
    answered = [row for row in rows if row.get("answer")]
    of = {skill: [row for row in answered if str(row.get("skill", DEFAULT_SKILL)) == skill] for skill in skills}
    return [row for skill in skills for row in of[skill][:count]]


class GoldAnswerGradients:
    """Gold answers of training rows, and how the student would have to change to give them.

    Args:
        rows: Rows with `prompt`, `answer` and `skill`, the same on every process.
        encoder: Encodes prompts for the student.
        longest: Tokens of an answer at most; None: any number.

    Raises:
        RecipeError: no row has an answer.
    """

    def __init__(
        self,
        rows: list[Row],
        encoder: PromptEncoder,
        longest: int | None,
        accelerator: Accelerator,
    ) -> None:
        if not rows:
            raise RecipeError("controller: probe looks at gold answers, and no row of probe_rows has one")
        prompts = [encoder.encode(row["prompt"]) for row in rows]
        answers = gold_completions(rows, encoder.tokenizer, longest)
        self.num_tokens = sum(map(len, prompts)) + sum(map(len, answers))
        """Tokens of all rows."""
        self._texts: dict[str, list[tuple[list[int], list[int]]]] = {}
        for row, prompt, answer in zip(rows, prompts, answers, strict=True):
            self._texts.setdefault(str(row.get("skill", DEFAULT_SKILL)), []).append((prompt, answer))
        self._accelerator = accelerator

    @torch.no_grad()
    def sketches(self, student: PreTrainedModel, signs_2HD: Tensor, skills: list[str]) -> Tensor:
        """Sketch the gradient of the answers' negative log-likelihood: this process's share of the sum, `[S, D]`."""
        mine = slice(self._accelerator.process_index, None, self._accelerator.num_processes)
        total_SD = signs_2HD.new_zeros(len(skills), SIZE, dtype=torch.float64)
        training = student.training
        student.eval()
        for s, skill in enumerate(skills):
            texts = self._texts.get(skill, [])[mine]
            if texts:
                hidden_NH, targets_N = _read(student, texts)
                gradient_NH = likelihood_gradient(LMHead.of(student), hidden_NH, targets_N)
                total_SD[s] = sketch(hidden_NH, gradient_NH, signs_2HD).double().sum(0)
        student.train(training)
        return total_SD


def _read(student: PreTrainedModel, texts: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """The student's last states where it predicts the answers' tokens `[N, H]`, and those tokens `[N]`."""
    ids_BS, attention_BS, mask_BT = (x.to(student.device) for x in pad_prompts_and_completions(texts))
    after = mask_BT.shape[1]
    hidden_BTH = hidden_states(
        student, ids_BS, attention_BS, after, (), len(texts), PromptSharingLayout.apart(student)
    ).last_BTH
    answers_BT = mask_BT.bool()
    return hidden_BTH[answers_BT], ids_BS[:, -after:][answers_BT]
