"""How hard teachers find the gold answers of each skill and level, for a curriculum that goes from easy to hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rld.data.prompt_stream import PromptStream
from rld.models.logprob_source import ScoredSequence
from rld.models.prompting import PromptEncoder
from rld.pipeline.run import RunContext
from rld.pipeline.teacher_loading import ProbedTeacher
from rld.rollout.gold import gold_completions
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.types import Event, Row, Task
from rld.utils.flops import forward_flops

ROWS_PER_LEVEL = 32
"""Gold answers of each level by whose loss levels are ordered."""


def rows_of_levels(context: RunContext, skill: str) -> list[Row]:
    """Return the rows by which the levels of a skill are ordered.

    Raises:
        DataError: the skill has rows without gold answers.
    """
    source = context.skill_rows[skill]
    return source.rows(ROWS_PER_LEVEL * source.num_levels, context.recipe.seed)


def order_by_loss(
    context: RunContext, stream: PromptStream, teachers: Sequence[ProbedTeacher], encoder: PromptEncoder
) -> list[Event]:
    """Tell a stream's curriculum the teachers' losses on gold answers, and return an event for each skill.

    Of the teachers of a skill, the one with the least loss over all levels counts.

    Args:
        context: Has the rows, and the meter that counts the forwards.
        stream: The prompts of the stage.
        teachers: Its teachers.
        encoder: The student's.

    Raises:
        DataError: a skill has rows without gold answers.
    """
    losses, events = dict[Task, float](), list[Event]()
    for skill in stream.skills:
        by_level, measured = _losses_of_levels(context, skill, teachers, encoder)
        losses |= {Task(skill, level): loss for level, loss in by_level.items()}
        order = ", ".join(map(str, sorted(by_level, key=lambda level: by_level[level])))
        events.append(
            Event(0, "difficulty", skill, f"levels from easy to hard: {order}", measured, "by the least loss")
        )
    stream.difficulty(losses)
    return events


def _losses_of_levels(
    context: RunContext, skill: str, teachers: Sequence[ProbedTeacher], encoder: PromptEncoder
) -> tuple[Mapping[int, float], str]:
    """Return by what the levels of a skill are ordered, and a sentence on it."""
    rows = rows_of_levels(context, skill)
    by_teacher = {
        str(probed.teacher.name): _losses(context, probed, rows, encoder)
        for probed in teachers
        if probed.teacher.teaches(skill)
    }
    if not by_teacher:
        by_level = {level: float(level) for level in range(context.skill_rows[skill].num_levels)}
        return by_level, "no teacher teaches the skill, so its levels stay in their order"
    name = min(by_teacher, key=lambda name: sum(by_teacher[name].values()))
    listed = ", ".join(f"{loss:.3g} at level {level}" for level, loss in by_teacher[name].items())
    text = f"the loss of teacher {name} on {ROWS_PER_LEVEL} gold answers each is {listed}, in nats per token"
    return by_teacher[name], text


def _losses(
    context: RunContext, probed: ProbedTeacher, rows: Sequence[Row], student: PromptEncoder
) -> dict[int, float]:
    """Return a teacher's mean loss on the gold answers of each level, in nats per token of its own tokenizer."""
    teacher: Teacher = probed.teacher
    encoder = teacher.prompt_encoder(student)
    answers = gold_completions(rows, encoder, None)
    sequences = [
        ScoredSequence([*encoder.encode(row["prompt"]), *answer], len(answer))
        for row, answer in zip(rows, answers, strict=True)
    ]
    source = teacher.source or LocalLogprobs(teacher, context.state.device, top_k=1)
    context.flop_meter.add("answers", forward_flops(probed.num_parameters, sum(len(s.ids) for s in sequences)))
    sums: dict[int, tuple[float, int]] = {}
    for row, logprobs in zip(rows, source.score(sequences, 1.0), strict=True):
        total, number = sums.get(row["level"], (0.0, 0))
        sums[row["level"]] = total - float(logprobs.sampled.sum()), number + len(logprobs.sampled)
    return {level: total / number for level, (total, number) in sorted(sums.items())}
