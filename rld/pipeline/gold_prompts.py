"""The rows whose gold answers a `distill` stage learns in place of sampled completions, and the skills without any."""

from __future__ import annotations

from rld.data.skill_rows import SkillRows
from rld.models.prompting import PromptEncoder
from rld.pipeline.gold_answers import NUM_JUDGED, reason_without_gold, unpaid
from rld.pipeline.run import RunContext
from rld.recipe.stages.distill import Distill
from rld.rollout.gold import gold_problem
from rld.types import Event
from rld.utils.user_calls import action

MOST_PASSED_OVER = 0.01
"""Share of the rows that may be passed over because the student cannot write their gold answer."""

_INSTEAD = "signals.gold: {answers: teachers} learns correct answers of teachers in their place"
"""What a user may do about a skill whose rows have no answers that the student can learn."""


def gold_rows(context: RunContext, stage: Distill, encoder: PromptEncoder) -> tuple[dict[str, int], list[Event]]:
    """Return `PromptStream.gold_rows`, and an event for each skill of which none is learnt.

    Rows that are held out, and those without an answer, do not count. Where the recipe does not name `signals.gold`, a
    skill has 0 whose answers are none to learn from.

    Args:
        context: The run.
        stage: A stage of it.
        encoder: The student's.
    """
    counts: dict[str, int] = {}
    events = []
    for skill in context.skills(stage) if stage.has_gold_prompts else ():
        rows = context.skill_rows[skill]
        reason = _reason_without(context, rows, encoder) if stage.signals.gold == "auto" else None
        items_by_level = rows.training_items()
        if reason is not None:
            counts[skill] = 0
            events.append(Event(0, "gold answers off", skill, "gold", reason))
        elif items_by_level:
            sizes = [sum(bool(item.answer) or stage.learns_teachers for item in items) for items in items_by_level]
            counts[skill] = min(sizes) * len(sizes)
    return counts, events


def _reason_without(context: RunContext, rows: SkillRows, encoder: PromptEncoder) -> str | None:
    """Return why a skill's gold answers are none to learn from; None if they are."""
    recipe, folder = context.recipe, context.source.parent
    spec, examples = recipe.verifier_in_use, rows.examples()
    if reason := reason_without_gold(recipe, folder, rows.skill):
        return reason
    problems = [gold_problem(example.row, encoder, recipe.max_new_tokens) for example in examples]
    usable = [example for example, problem in zip(examples, problems, strict=True) if problem is None]
    if len(examples) - len(usable) > MOST_PASSED_OVER * len(examples):
        return f"{next(filter(None, problems))}; {_INSTEAD}"
    try:
        wrong = unpaid(spec, usable[:NUM_JUDGED], folder)
    except Exception as error:  # the verifier is the user's code
        return f"the verifier {spec.use} {action(error)} when it was asked about them"
    return f"the verifier {spec.use} does not accept {wrong[0][0].row['answer']!r:.60}" if wrong else None
