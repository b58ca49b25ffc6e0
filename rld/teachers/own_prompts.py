"""A teacher's own prompts in place of the student's: the completions that it scores behind them are the same.

Shapes: B completions of a rollout, R of them that a teacher scores, P tokens of its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from rld.models.prompting import PromptEncoder
from rld.teachers.own_rows import missing
from rld.teachers.slot_base import TeacherBatch
from rld.teachers.teacher import Teacher
from rld.types import Row
from rld.utils.tensors import pad_left


class OwnPrompts(NamedTuple):
    """The prompts that a teacher reads in place of the student's, one per completion, in the student's tokens."""

    prompts: Sequence[Any]
    """Text or messages."""
    ids_BP: Tensor
    """Padded on the left."""
    mask_BP: Tensor

    @classmethod
    def of(cls, teacher: Teacher, rows: Sequence[Row], needed_B: Tensor, student: PromptEncoder) -> OwnPrompts:
        """Return a teacher's prompts; of rows that lack what the template shows and do not need it, the student's.

        Args:
            teacher: A teacher with a template.
            rows: The row of each completion, with what the template shows of the rollout.
            needed_B: Which rows need the teacher.
            student: Encodes prompts for the student.

        Raises:
            TeacherError: a row that needs the teacher lacks what the template shows.
        """
        template = teacher.prompt
        assert template is not None
        own_rows = [
            teacher.own_row(row) if is_needed or not (teacher.reads_attempts or missing(row, template)) else row
            for row, is_needed in zip(rows, needed_B.tolist(), strict=True)
        ]
        prompts = [row["prompt"] for row in own_rows]
        return cls(prompts, *pad_left(student.encode_all(prompts)))

    def extra_B(self, prompt_mask_BP: Tensor) -> Tensor:
        """Return by how many tokens the prompts are longer than the student's, of which this is the mask."""
        lengths_B: Tensor = prompt_mask_BP.sum(1)
        return self.mask_BP.sum(1).to(lengths_B) - lengths_B

    def in_place(self, batch: TeacherBatch, rows_R: Tensor) -> TeacherBatch:
        """Return a batch of the completions `rows_R` with these prompts."""
        device, rows = batch.prompt_ids_RP.device, rows_R.cpu()
        return replace(
            batch,
            prompts=[self.prompts[i] for i in rows.tolist()],
            prompt_ids_RP=self.ids_BP[rows].to(device),
            prompt_mask_RP=self.mask_BP[rows].to(device),
        )
