"""Put the rows of each skill into levels by how hard teachers find their gold answers.

Shapes: U units of a skill.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate.utils import reduce
from torch import Tensor

from rld.data.ordered_rows import OrderedRows
from rld.errors import TeacherDown
from rld.models.logprob_source import ScoredSequence, answered_everywhere
from rld.models.prompting import PromptEncoder
from rld.pipeline.run import RunContext
from rld.pipeline.teacher_loading import ProbedTeacher
from rld.rollout.gold import gold_completions
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.types import Event, Row
from rld.utils.flops import forward_flops

_BATCH = 256
"""Rows that are encoded before they are scored."""


def order_by_loss(
    context: RunContext,
    sources: Mapping[str, OrderedRows],
    teachers: Sequence[ProbedTeacher],
    encoder: PromptEncoder,
) -> list[Event]:
    """Put the rows of skills into levels by a teacher's loss on their gold answers, and return an event for each skill.

    Of the teachers of a skill, the one with the least mean loss counts. Each process scores its share of the rows.

    Args:
        context: Has the meter that counts the forwards.
        sources: The rows of each skill.
        teachers: The teachers of the stage.
        encoder: The student's.

    Raises:
        DataError: a skill has rows without gold answers, or with one that a teacher cannot write.
        TeacherDown: a skill has no teacher that answers, or one that is not optional does not.
    """
    events = []
    for skill, rows in sources.items():
        by_teacher = dict[str, Tensor]()
        for probed in teachers:
            if probed.teacher.teaches(skill) and not probed.teacher.is_down:
                try:
                    by_teacher[str(probed.teacher.name)] = _losses(context, probed, rows, encoder)
                except TeacherDown:
                    if not probed.teacher.optional:
                        raise
                    probed.teacher.is_down = True  # so that the trainer drops it
        if not by_teacher:
            raise TeacherDown(f"no teacher of skill '{skill}' is left that answers, to put its rows into levels")
        name = min(by_teacher, key=lambda name: float(by_teacher[name].mean()))
        rows.arrange(by_teacher[name].tolist())
        events.append(Event(0, "difficulty", skill, _about(rows), _measured(name, rows, by_teacher[name])))
    return events


def _losses(context: RunContext, probed: ProbedTeacher, rows: OrderedRows, student: PromptEncoder) -> Tensor:
    """Return a teacher's loss on the gold answers of each unit without their ends, in nats per byte, `[U]`."""
    sums = answered_everywhere(functools.partial(_sums, context, probed.teacher, rows, student))
    sums = reduce(sums.to(context.state.device), reduction="sum").cpu()
    name = str(probed.teacher.name)
    context.flop_meter.add("answers", forward_flops(probed.num_parameters, float(sums[-1])), name)
    losses_U: Tensor = sums[: rows.num_units] / sums[rows.num_units : -1]
    return losses_U


def _sums(context: RunContext, teacher: Teacher, rows: OrderedRows, student: PromptEncoder) -> Tensor:
    """Return the nats and the bytes of this process's share of each unit, and the tokens that were read, `[2U + 1]`."""
    encoder = teacher.prompt_encoder(student)
    source = teacher.source or LocalLogprobs(teacher, context.state.device, top_k=1)
    nats_U, bytes_U = torch.zeros(2, rows.num_units, dtype=torch.float64)
    num_tokens = 0
    for batch in _batches(rows, context.state.process_index, context.state.num_processes):
        sequences = _sequences([row for _, row in batch], encoder)
        num_tokens += sum(len(sequence.ids) for sequence in sequences)
        for (unit, row), logprobs in zip(batch, source.score(sequences, 1.0), strict=True):
            nats_U[unit] -= float(logprobs.sampled.sum())
            bytes_U[unit] += len(row["answer"].encode())
    return torch.cat([nats_U, bytes_U, torch.tensor([float(num_tokens)], dtype=torch.float64)])


def _batches(rows: OrderedRows, process: int, num_processes: int) -> Iterator[list[tuple[int, Row]]]:
    """Yield the share of one process of the rows by which units are judged."""
    share = itertools.islice(rows.examples(), process, None, num_processes)
    while batch := list(itertools.islice(share, _BATCH)):
        yield batch


def _sequences(rows: Sequence[Row], encoder: PromptEncoder) -> list[ScoredSequence]:
    """Return the rows with their answers, whose tokens are scored without the end token: it has no byte.

    Its loss would count for more the shorter an answer is.
    """
    answers = gold_completions([{**row, "is_cut": True} for row in rows], encoder, None)
    return [
        ScoredSequence([*encoder.encode(row["prompt"]), *answer], len(answer))
        for row, answer in zip(rows, answers, strict=True)
    ]


def _about(rows: OrderedRows) -> str:
    if rows.is_file:
        return f"{rows.num_units} rows in {rows.num_levels} levels"
    levels = sorted(range(rows.num_units), key=lambda unit: rows.levels_U[unit])
    return f"levels from easy to hard: {', '.join(map(str, levels))}"


def _measured(name: str, rows: OrderedRows, losses_U: Tensor) -> str:
    levels_U = torch.tensor(rows.levels_U)
    means = ", ".join(f"{float(losses_U[levels_U == level].mean()):.3g}" for level in range(rows.num_levels))
    return f"the mean loss of teacher {name} on gold answers is {means}, in nats per byte"
