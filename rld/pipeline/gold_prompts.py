"""The rows whose gold answers, or correct answers of teachers, a `distill` stage learns in place of completions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from rld.data.skill_rows import SkillRows
from rld.models.prompting import PromptEncoder
from rld.pipeline.gold_answers import NUM_JUDGED, may_answer, reason_without_gold, unpaid
from rld.pipeline.run import RunContext
from rld.recipe.stages.distill import Distill
from rld.rollout.gold import gold_problem
from rld.types import Event
from rld.utils.user_calls import action

MOST_PASSED_OVER = 0.01
"""Share of the rows that may be passed over because the student cannot write their gold answer."""

_INSTEAD = "signals.gold: {answers: teachers} learns correct answers of teachers in their place"
"""What a user may do about a skill whose rows have no answers that the student can learn."""


class GoldRows(NamedTuple):
    """The rows of a stage whose gold answers are learnt in place of sampled completions, or those of teachers to them.

    Rows that are held out do not count.
    """

    own: dict[str, int]
    """`PromptStream.gold_rows`; 0 for a skill whose rows have no answers to learn from."""
    answerable: dict[str, float]
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
        rows = cls({}, {}, [])
        if stage.gold is None or not stage.has_gold_prompts:
            return rows
        for skill in context.skills(stage):
            items_by_level = context.skill_rows[skill].training_items()
            if may_answer(context.recipe, context.source.parent, stage, skill):
                rows.answerable[skill] = _smallest(map(len, items_by_level))
            if stage.gold.answers == "teachers":
                continue
            rows_of_skill = context.skill_rows[skill]
            reason = _reason_without(context, rows_of_skill, encoder) if stage.checks_gold_answers else None
            if reason is not None:
                rows.own[skill] = 0
                kind = "gold answers of teachers" if skill in rows.answerable else "gold answers off"
                instead = "" if stage.learns_teachers else f"; {_INSTEAD}"
                rows.events.append(Event(0, kind, skill, "gold", f"{reason}{instead}"))
            elif items_by_level:
                rows.own[skill] = int(_smallest(sum(bool(item.answer) for item in items) for items in items_by_level))
        return rows


def _smallest(sizes: Iterable[int]) -> float:
    """Return the rows of levels as if all had as few as the smallest; infinity where there are no levels of a file."""
    counts = [*sizes]
    return min(counts) * len(counts) if counts else math.inf


def _reason_without(context: RunContext, rows: SkillRows, encoder: PromptEncoder) -> str | None:
    """Return why a skill's gold answers are none to learn from; None if they are."""
    recipe, folder = context.recipe, context.source.parent
    spec, examples = recipe.verifier_in_use, rows.examples()
    if reason := reason_without_gold(recipe, folder, rows.skill):
        return reason
    problems = [gold_problem(example.row, encoder, recipe.max_new_tokens) for example in examples]
    usable = [example for example, problem in zip(examples, problems, strict=True) if problem is None]
    if len(examples) - len(usable) > MOST_PASSED_OVER * len(examples):
        return next(filter(None, problems))
    try:
        wrong = unpaid(spec, usable[:NUM_JUDGED], folder)
    except Exception as error:  # the verifier is the user's code
        return f"the verifier {spec.use} {action(error)} when it was asked about them"
    return f"the verifier {spec.use} does not accept {wrong[0][0].row['answer']!r:.60}" if wrong else None
