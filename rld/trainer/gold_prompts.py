"""Prompts of a rollout whose gold answers are learnt, in place of completions that the student samples.

The completions of a prompt are one group. In the place of a gold group there are as many prompts of the same task, each
with its gold answer: a gold answer is learnt once, and not as often as others are sampled.

Shapes: B completions of this process.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather

from rld.controllers.gold_share import FIRST_SHARE, GoldShareController
from rld.controllers.observation import Controller
from rld.controllers.runtime import ControllerRuntime
from rld.data.prompt_stream import PromptStream
from rld.errors import RecipeError
from rld.models.prompting import PromptEncoder
from rld.rollout.batch import RolloutBatch, loss_mask
from rld.rollout.gold import gold_completions, gold_problem
from rld.rollout.record import RolloutRecord
from rld.rollout.verifier import no_reward
from rld.types import SIGNALS, Row

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
    ) -> None:
        self.stream, self.runtime, self.accelerator, self.seed = stream, runtime, accelerator, seed
        self.encoder, self.max_tokens = encoder, max_tokens
        self._has_warned = False

    @classmethod
    def for_trainer(cls, trainer: Any) -> GoldPrompts | None:
        """Return those of an `RLDTrainer`; None where no prompts are learnt from their gold answers alone.

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
            raise RecipeError("gold_share: set it; there is no reward that tells how often the student fails")
        return cls(
            trainer.stream,
            trainer.runtime,
            trainer.accelerator,
            trainer.args.seed,
            encoder=trainer._encoder,
            max_tokens=trainer.args.max_completion_length,
        )

    def placed(self, record: RolloutRecord) -> RolloutRecord:
        """Return the record of a rollout with its gold groups, and with the rows of these."""
        skills_B = record.skill_ids_B.to(self.accelerator.device)
        gold_groups = self._chosen(gather(skills_B)[:: record.group_size].tolist(), record)
        rows = list(record.rows)
        for i, row in enumerate(record.rows):
            group, place = divmod(record.first_row + i, record.group_size)
            if group in gold_groups:
                name = f"{record.number}:{group}:{place}"
                rows[i] = self._learnable(row if place == 0 else self.stream.another(row, name), name)
        return replace(record, rows=rows, gold_groups=gold_groups)

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
            row = self.stream.another(row, f"{place}:{i}")
        return row

    def _chosen(self, skills: Sequence[int], record: RolloutRecord) -> frozenset[int]:
        """Return the numbers of the gold groups, given the skill of each group; the mean number is the share's."""
        chosen: list[int] = []
        for skill in sorted(set(skills)):
            groups = [number for number, other in enumerate(skills) if other == skill]
            rng = random.Random(f"{self.seed}:gold:{record.number}:{skill}")
            share = self.runtime.weights.gold_share[record.skills[skill]]
            # At the beginning each skill that has a prompt is to show how the student answers.
            is_first = record.number == 0 and share <= FIRST_SHARE
            chosen += rng.sample(groups, int(len(groups) * share + (0.0 if is_first else rng.random())))
        return frozenset(chosen)


def gold_controller(trainer: Any, controller: Controller) -> Controller:
    """Return a controller that also sets the shares of gold prompts; without these, the controller itself.

    Args:
        trainer: An `RLDTrainer` with its encoder.
        controller: Its controller.
    """
    args, stream = trainer.args, trainer.stream
    if not args.has_gold_prompts:
        return controller
    lengths = dict[str, float]()
    if stream is not None and args.gold_share is None:
        lengths = {skill: _gold_length(stream.examples(skill, _NUM_MEASURED), trainer) for skill in stream.skills}
    return GoldShareController(
        controller,
        args.gold_share,
        {} if stream is None else stream.gold_rows,
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
    sampled, everything = accelerator.reduce(torch.stack([num_tokens_B[~is_gold_B].sum(), num_tokens_B.sum()]), "sum")
    share_G = (sampled / everything).repeat(len(SIGNALS))
    share_G[SIGNALS.index("policy")] = 1.0
    batch["signal_weights"] = (batch["signal_weights"] * share_G).masked_fill(is_gold_B[:, None], 0.0)
