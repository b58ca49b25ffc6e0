"""The rows of a rollout as teachers read them whose prompts show what the rollout has: feedback and attempts.

As in self-distillation from feedback (Hübotter et al. 2026, SDPO), such a teacher reads what the environment says of a
completion, or another completion that is correct, and scores the completion behind that. It teaches only where all is
there that its template shows.

Shapes: B completions of this process, A completions of all processes, K teachers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate.utils import gather, gather_object
from torch import Tensor

from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length
from rld.rollout.feedback import FEEDBACK
from rld.rollout.record import RolloutRecord
from rld.teachers.own_rows import empty_fields, missing
from rld.teachers.teacher import Teacher
from rld.types import ROLLOUT_TEXTS, Row, skill_of
from rld.utils.templates import rollout_fields


class AttemptRows(NamedTuple):
    """What each teacher reads of the rows of a rollout."""

    rows_KB: Sequence[Sequence[Row]]
    """By teacher, the row of each completion of this process, with the texts of the rollout if its template has any."""
    questions_KB: Sequence[Sequence[Row]]
    """The rows of the prompts that the gate asks. All completions of a group have the texts of the first one of the
    group, over all processes, that has all which the template shows and on which teachers may teach."""
    is_complete_BK: Tensor
    """Which completions have all that each teacher's template shows, bool. Gold answers in their place are no attempts,
    and have it not."""
    has_question_BK: Tensor
    """Which are of a group in which some completion has, bool."""
    metrics: dict[str, float]
    """By name in `metrics.jsonl`, for each teacher that reads attempts the share of complete ones among those that it
    could teach on, over all processes."""

    @classmethod
    def of(
        cls,
        teachers: Sequence[Teacher],
        record: RolloutRecord,
        encoder: PromptEncoder,
        num_new: int,
        may_teach_B: Tensor,
    ) -> AttemptRows:
        """Return the rows of a rollout that has its rewards; all processes call it.

        Args:
            teachers: The teachers.
            record: The rollout.
            encoder: Encodes prompts for the student.
            num_new: Most tokens of a completion, for which the teacher's context needs room.
            may_teach_B: On which completions teachers may teach, bool, on the device of the masks.
        """
        rows, device = record.rows, may_teach_B.device
        rows_KB, questions_KB = [rows] * len(teachers), [rows] * len(teachers)
        is_complete_BK = torch.ones(len(rows), len(teachers), dtype=torch.bool, device=device)
        has_question_BK = is_complete_BK.clone()
        numbers = [k for k, teacher in enumerate(teachers) if teacher.reads_attempts]
        if not numbers:
            return cls(rows_KB, questions_KB, is_complete_BK, has_question_BK, {})
        texts_A = _texts(record, [teachers[k] for k in numbers])
        first, is_sampled_B = record.first_row, ~record.is_fixed_B.to(device)
        for k in numbers:
            rows_KB[k] = [{**row, ROLLOUT_TEXTS: texts} for row, texts in zip(rows, texts_A[first:], strict=False)]
            is_complete = torch.tensor(_complete(teachers[k], rows_KB[k], encoder, num_new), device=device)
            is_complete_BK[:, k] = is_complete & is_sampled_B
        is_source_AK = gather(is_complete_BK & may_teach_B[:, None])
        for k in numbers:
            complete_groups = {i // record.group_size: i for i in reversed(is_source_AK[:, k].nonzero()[:, 0].tolist())}
            sources = [complete_groups.get(group) for group in record.group_ids_B.tolist()]
            has_question_BK[:, k] = torch.tensor([source is not None for source in sources])
            questions_KB[k] = [
                row if source is None else {**row, ROLLOUT_TEXTS: texts_A[source]}
                for row, source in zip(rows, sources, strict=True)
            ]
        metrics = _shares(teachers, numbers, record, is_complete_BK)
        return cls(rows_KB, questions_KB, is_complete_BK, has_question_BK, metrics)


def _texts(record: RolloutRecord, readers: Sequence[Teacher]) -> list[dict[str, str]]:
    """Return the texts of each completion of all processes, by field; "" where there is none.

    Where no reward has said anything in the first rollout, a warning names the readers that wait for it.
    """
    feedback: Sequence[str | None] = [None] * len(record.rows) if record.feedback is None else record.feedback
    pairs: list[tuple[str, str | None]] = gather_object([*zip(record.attempts, feedback, strict=True)])
    waiting = [str(reader.name) for reader in readers if FEEDBACK in rollout_fields(reader.prompt)]
    if waiting and record.number == 0 and record.is_training and all(text is None for _, text in pairs):
        warnings.warn(
            f"no reward gives feedback, which the prompts of {', '.join(waiting)} show ({{{FEEDBACK}}}): they teach "
            f"nothing until a reward calls log_extra('{FEEDBACK}', texts)",
            stacklevel=2,
        )
    is_correct_A, size = (record.is_correct_A & record.is_sampled_A).tolist(), record.group_size
    correct = [i for i, (attempt, _) in enumerate(pairs) if is_correct_A[i] and attempt]
    return [
        {
            "attempt": attempt,
            "feedback": text or "",
            "correct_attempt": next((pairs[j][0] for j in correct if j // size == i // size and j != i), ""),
        }
        for i, (attempt, text) in enumerate(pairs)
    ]


def _complete(teacher: Teacher, rows: Sequence[Row], encoder: PromptEncoder, num_new: int) -> list[bool]:
    """Tell which rows have all that a teacher's template shows, and fit into its context with a completion.

    The context of a source, such as a server, is not known.
    """
    template = teacher.prompt
    assert template is not None
    is_complete = [not empty_fields(row, template) for row in rows]
    limit = None if teacher.source is not None else context_length(teacher.load().config)
    if limit is None:
        return is_complete
    is_read = [teacher.teaches(skill_of(row)) and missing(row, template) is None for row in rows]
    indices = [i for i in range(len(rows)) if is_complete[i] and is_read[i]]
    prompts = [teacher.own_row(rows[i])["prompt"] for i in indices]
    lengths = map(len, teacher.prompt_encoder(encoder).encode_all(prompts))
    too_long = [i for i, length in zip(indices, lengths, strict=True) if length + num_new > limit]
    if too_long:
        warnings.warn(
            f"teacher '{teacher.name}': {len(too_long)} of {len(rows)} prompts with what the rollout fills in do not "
            f"fit its context of {limit} tokens with {num_new} more; it does not teach there",
            stacklevel=2,
        )
    return [complete and i not in too_long for i, complete in enumerate(is_complete)]


def _shares(
    teachers: Sequence[Teacher], numbers: Sequence[int], record: RolloutRecord, is_complete_BK: Tensor
) -> dict[str, float]:
    """Return the share of complete completions of each teacher that reads attempts; none where it could not teach."""
    is_own_B = ~record.is_fixed_B
    taught_BK = torch.tensor([[teacher.teaches(skill_of(row)) for teacher in teachers] for row in record.rows])
    taught_BK = (taught_BK & is_own_B[:, None]).to(is_complete_BK.device)
    taught_K, complete_K = (gather(mask_BK).sum(0).tolist() for mask_BK in (taught_BK, taught_BK & is_complete_BK))
    return {f"teacher/{teachers[k].name}/informed": complete_K[k] / taught_K[k] for k in numbers if taught_K[k]}
