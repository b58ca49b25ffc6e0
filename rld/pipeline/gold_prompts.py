"""The rows whose gold answers, or correct answers of teachers, a `distill` stage learns in place of completions."""

from __future__ import annotations

import math
from typing import NamedTuple

from rld.data.prompt_stream import even_size
from rld.models.prompting import PromptEncoder
from rld.pipeline.gold_answers import may_answer, reason_without_gold
from rld.pipeline.run import RunContext
from rld.recipe.stages.distill import Distill
from rld.rollout.gold import gold_problem
from rld.types import Event, Row

_INSTEAD = "signals.gold: {answers: teachers} learns correct answers of teachers in their place"
"""What a user may do about a skill whose rows have no answers that the student can learn."""


class GoldRows(NamedTuple):
    """The rows of a stage whose gold answers are learnt in place of sampled completions, or those of teachers to them.

    Rows that are held out do not count.
    """

    num_gold: dict[str, int]
    """`PromptStream.gold_rows`; 0 for a skill whose rows have no answers to learn from."""
    num_answerable: dict[str, float]
    """`PromptStream.answerable_rows`."""
    events: list[Event]
    """One for each skill whose rows have no answers to learn from."""

    @classmethod
    def of(cls, context: RunContext, stage: Distill, encoder: PromptEncoder) -> GoldRows:
        """Return those of a stage.

        Args:
            context: The run.
            stage: A stage of it.
            encoder: The student's.
        """
        rows, recipe, folder = cls({}, {}, []), context.recipe, context.source.parent

        def problem(row: Row) -> str | None:
            return gold_problem(row, encoder, recipe.max_new_tokens)

        if stage.gold is None or not stage.has_gold_prompts:
            return rows
        for skill in context.skills(stage):
            items_by_level = context.skill_rows[skill].training_items()
            if may_answer(recipe, folder, stage, skill):
                rows.num_answerable[skill] = even_size([*map(len, items_by_level)]) if items_by_level else math.inf
            if stage.gold.answers == "teachers":
                continue
            reason = None
            if stage.checks_gold_answers:
                reason = reason_without_gold(recipe, folder, context.skill_rows[skill], problem)
            if reason is not None:
                rows.num_gold[skill] = 0
                kind = "gold answers of teachers" if skill in rows.num_answerable else "gold answers off"
                instead = "" if stage.learns_teachers else f"; {_INSTEAD}"
                rows.events.append(Event(0, kind, skill, "gold", f"{reason}{instead}"))
            elif items_by_level:
                rows.num_gold[skill] = even_size([sum(bool(item.answer) for item in items) for items in items_by_level])
        return rows
