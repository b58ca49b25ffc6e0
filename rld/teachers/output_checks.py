"""What a teacher says is checked before a loss sees it, so that an error names the teacher.

Shapes: R completions that a teacher scores, T completion tokens, L layers, H width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from rld.errors import NonFiniteError, TeacherError
from rld.models.self_check import non_finite_weight
from rld.teachers.slot_base import SlotResult, TeacherBatch, TeacherSlot

_FINITE = "hidden", "layers", "span_scores"
"""The tensors of a `SlotResult` whose values are finite; the probability of a rare token may be 0."""


def require_finite_outputs(slot: TeacherSlot, batch: TeacherBatch, result: SlotResult) -> None:
    """Refuse a teacher's outputs that are not finite where it has a distribution.

    Raises:
        TeacherError: they are not; names the teacher, and a weight that is the cause.
    """
    valid_RT = result.tokens_RT & batch.completion_mask_RT.bool()
    for name, values in result.tensors.items():
        if name in _FINITE and not _is_finite(values, valid_RT.to(values.device)):
            raise TeacherError(_problem(str(slot.teacher.name), name, slot.model))
    log_p = [result.tensors[name] for name in ("log_p", "tail", "sampled") if name in result.tensors]
    if any(bool(values[valid_RT.to(values.device)].isnan().any()) for values in log_p):
        raise TeacherError(_problem(str(slot.teacher.name), "log-probabilities", slot.model))


def _is_finite(values: Tensor, valid_RT: Tensor) -> bool:
    if values.dim() == 2:  # of spans, which are numbered from 0 on: their places are no tokens
        return bool(values.isfinite().all())
    values_RTX = (values.transpose(1, 2) if values.dim() == 4 else values).flatten(2)
    return bool(values_RTX.isfinite().all(-1)[valid_RT].all())


def _problem(teacher: str, name: str, model: PreTrainedModel | None) -> str:
    weight = None if model is None else non_finite_weight(model)
    cause = f"its weight {weight} is not finite" if weight else "load it in bfloat16 or float32, or look at its weights"
    return f"teacher '{teacher}': its outputs ({name}) are not finite, so they would spoil the student; {cause}"


@contextmanager
def errors_of_a_teacher() -> Iterator[None]:
    """Make an error of logits that are not finite one of the teacher: the training has not diverged."""
    try:
        yield
    except NonFiniteError as error:
        raise TeacherError(str(error)) from error
