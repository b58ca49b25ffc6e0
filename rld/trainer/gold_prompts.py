"""Prompts of a rollout whose gold answers are learnt, in place of completions that the student samples.

The completions of a prompt are one group. In the place of a gold group there are as many prompts of the same task, each
with its gold answer: a gold answer is learnt once, and not as often as others are sampled. Answers of teachers that the
verifier accepts take the place of rows' where the controller says so (`answered_rows.py`); a group without enough of
them is sampled.

Shapes: B completions of this process.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather

from rld.controllers.gold_share import GoldShareController
from rld.controllers.observation import Controller
from rld.controllers.runtime import ControllerRuntime
from rld.data.prompt_stream import PromptStream
from rld.errors import RecipeError
from rld.models.prompting import PromptEncoder
from rld.rollout.accepted_answers import AcceptedAnswers
from rld.rollout.batch import RolloutBatch, loss_mask
from rld.rollout.gold import gold_completions, gold_problem
from rld.rollout.record import RolloutRecord
from rld.rollout.verifier import Verify, no_reward
from rld.trainer.answered_rows import AnsweredRows
from rld.types import SIGNALS, Row, Task, skill_of

_MOST_TRIES = 100
"""Rows that are drawn for a gold answer; before a run a sample of the rows is checked, so that few are unusable."""

_NUM_MEASURED = 16
"""Rows of a skill by which the length of its gold answers is measured."""


class GoldPrompts:
    """Chooses the gold groups of a rollout by the controller's share of each skill, and draws their prompts.

    Args:
        stream: Draws the rows.
        runtime: Has the shares.
        accelerator: Gathers over processes.
        seed: Seed of the choice.
        encoder: The student's.
        max_tokens: Greatest length of a gold answer, the end token included.
        answered_rows: Draws rows that teachers answer. None: the rows' own answers are learnt.
    """

    def __init__(
        self,
        stream: PromptStream,
        runtime: ControllerRuntime,
        accelerator: Accelerator,
        seed: int,
        *,
        encoder: PromptEncoder,
        max_tokens: int | None,
        answered_rows: AnsweredRows | None,
    ) -> None:
        self.stream, self.runtime, self.accelerator, self.seed = stream, runtime, accelerator, seed
        self.encoder, self.max_tokens, self.answered_rows = encoder, max_tokens, answered_rows
        self._has_warned = False

    @classmethod
    def for_trainer(cls, trainer: Any, verify: Verify | None) -> GoldPrompts | None:
        """Return those of an `RLDTrainer`; None where no prompts are learnt from their gold answers alone.

        Args:
            trainer: The trainer, with its teachers.
            verify: Gives 1 to correct answers. None: there is no such function.

        Raises:
            RecipeError: this trainer's prompts cannot be drawn.
        """
        if not trainer.args.has_gold_prompts:
            return None
        if trainer.stream is None:
            raise RecipeError(
                "gold_weight: a curriculum draws the prompts whose gold answers are learnt; pass curriculum=..., or "
                "set gold_completions"
            )
        if trainer.args.gold_share is None and getattr(trainer.reward_funcs[0], "__name__", "") == no_reward.__name__:
            raise RecipeError("gold_share: set it; there is no reward that tells whether gold answers are bare results")
        return cls(
            trainer.stream,
            trainer.runtime,
            trainer.accelerator,
            trainer.args.seed,
            encoder=trainer._encoder,
            max_tokens=trainer.args.max_completion_length,
            answered_rows=AnsweredRows.for_trainer(trainer, verify),
        )

    @property
    def answers(self) -> AcceptedAnswers | None:
        """The answers of teachers; None where those of rows are learnt."""
        return None if self.answered_rows is None else self.answered_rows.answers

    def with_gold_groups(self, record: RolloutRecord) -> RolloutRecord:
        """Return the record of a rollout with its gold groups, and with the rows of these."""
        tasks_B2 = torch.stack([record.skill_ids_B, record.levels_B], 1).to(self.accelerator.device)
        pairs = gather(tasks_B2)[:: record.group_size].tolist()
        gold_groups = self._gold_groups([skill for skill, _ in pairs], record)
        tasks = {i: Task(record.skills[skill], level) for i, (skill, level) in enumerate(pairs) if i in gold_groups}
        teacher_tasks = {i: task for i, task in tasks.items() if task.skill in self.runtime.weights.teacher_answers}
        pairs_by_group = self._answered(record, teacher_tasks)
        gold_groups = gold_groups - teacher_tasks.keys() | pairs_by_group.keys()
        rows, answers = list(record.rows), dict[int, str]()
        for i, row in enumerate(record.rows):
            group, place = divmod(record.first_row + i, record.group_size)
            if group in pairs_by_group:
                rows[i], answers[i] = pairs_by_group[group][place]
            elif group in gold_groups:
                name = f"{record.number}:{group}:{place}"
                rows[i] = self._learnable(row if place == 0 else self._another(row, name), name)
        return replace(record, rows=rows, gold_groups=gold_groups, answers=answers)

    def _answered(self, record: RolloutRecord, tasks: Mapping[int, Task]) -> Mapping[int, Sequence[tuple[Row, str]]]:
        """Return the rows and teachers' answers of groups, by their numbers, of those for which there are enough."""
        if not tasks:
            return {}
        assert self.answered_rows is not None  # as long as a controller lets none take rows' place
        return self.answered_rows.of(record.number, record.group_size, tasks)

    def _another(self, row: Row, place: str) -> Row:
        """Return a row of the same task as another one."""
        return self.stream.another(Task(skill_of(row), int(row.get("level", 0))), place)

    def _learnable(self, row: Row, place: str) -> Row:
        """Return a row, or another of its task where the student cannot write its gold answer; the first such is told.

        One such answer among many rows, which no check before the run has seen, must not end the run.
        """
        for i in range(_MOST_TRIES):
            problem = gold_problem(row, self.encoder, self.max_tokens)
            if problem is None:
                break
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(f"gold answers: {problem}; prompts like this one are passed over", stacklevel=2)
            row = self._another(row, f"{place}:{i}")
        return row

    def _gold_groups(self, skills: Sequence[int], record: RolloutRecord) -> frozenset[int]:
        """Return the numbers of the gold groups, given the skill of each group; the mean number is the share's."""
        numbers: list[int] = []
        for skill in sorted(set(skills)):
            groups = [number for number, other in enumerate(skills) if other == skill]
            rng = random.Random(f"{self.seed}:gold:{record.number}:{skill}")
            share = self.runtime.weights.gold_share[record.skills[skill]]
            numbers += rng.sample(groups, int(len(groups) * share + rng.random()))
        return frozenset(numbers)


def gold_controller(trainer: Any, controller: Controller) -> Controller:
    """Return a controller that also sets the shares of gold prompts; without these, the controller itself.

    Args:
        trainer: An `RLDTrainer` with its encoder.
        controller: Its controller.
    """
    args, stream = trainer.args, trainer.stream
    if not args.has_gold_prompts:
        return controller
    lengths, num_rows, num_answerable = dict[str, float](), dict[str, int](), dict[str, float]()
    if stream is not None:
        num_rows = dict.fromkeys(stream.skills, 0) if args.gold_answers == "teachers" else dict(stream.gold_rows)
        if args.gold_answers != "rows":
            taught = {skill for t in trainer.teachers for skill in (stream.skills if t.skills is None else t.skills)}
            num_answerable = {skill: count for skill, count in stream.answerable_rows.items() if skill in taught}
        for skill in stream.skills if args.gold_share is None or num_answerable else ():
            if num_rows.get(skill) != 0:
                lengths[skill] = _gold_length(stream.examples(skill, _NUM_MEASURED), trainer)
                if math.isinf(lengths[skill]) and skill in num_answerable:
                    num_rows[skill] = 0
    return GoldShareController(
        controller,
        args.gold_share,
        num_rows,
        num_answerable,
        num_iterations=args.num_iterations,
        gold_lengths=lengths,
        longest=math.inf if args.max_completion_length is None else args.max_completion_length,
    )


def _gold_length(rows: Sequence[Row], trainer: Any) -> float:
    """Return the mean tokens of those gold answers of rows that the student can write; infinity where it can none."""
    longest, encoder = trainer.args.max_completion_length, trainer._encoder
    usable = [row for row in rows if gold_problem(row, encoder, longest) is None]
    return fmean(map(len, gold_completions(usable, encoder, longest))) if usable else math.inf


def weigh_gold_prompts(batch: RolloutBatch, record: RolloutRecord, accelerator: Accelerator) -> None:
    """Give a rollout's signals weight on what is sampled alone, in proportion to its share of the tokens.

    The policy's loss is a mean over all tokens of the rollout and needs no factor. Those of the teachers are means over
    the tokens on which they teach.
    """
    is_gold_B = record.is_gold_prompt_B.to(accelerator.device)
    num_tokens_B = loss_mask(batch).sum(1)
    num_sampled, num_total = accelerator.reduce(
        torch.stack([num_tokens_B[~is_gold_B].sum(), num_tokens_B.sum()]), "sum"
    )
    share_G = (num_sampled / num_total).repeat(len(SIGNALS))
    share_G[SIGNALS.index("policy")] = 1.0
    batch["signal_weights"] = (batch["signal_weights"] * share_G).masked_fill(is_gold_B[:, None], 0.0)
