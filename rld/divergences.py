"""How far a student is from a teacher, at every token.

A divergence is a frozen model that is the callable: on log-probabilities `[..., V]` (log-softmaxed over the
vocabulary V) it returns `[...]`, never negative, 0 where the two agree. That call is the plain reference; training
uses the tiled form in `student.py`, which never holds all V at once and takes the interpolation `beta` from here.

To add one, write a class and put its name in `AnyDivergence`, the last line.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor


def _kl(p_V: Tensor, q_V: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities; a token that p never says contributes 0."""
    p = p_V.exp()
    return (p * (p_V - q_V)).masked_fill(p == 0, 0.0).sum(-1)


class _Divergence(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def interpolation(self) -> float:
        """TRL's `beta`: 0 is forward KL, 1 reverse KL, between them the generalised Jensen-Shannon divergence."""
        raise NotImplementedError


class ForwardKL(_Divergence):
    """KL(teacher || student): the student must cover everything the teacher might say (Hinton et al. 2015)."""

    kind: Literal["forward_kl"] = "forward_kl"

    @property
    def interpolation(self) -> float:
        return 0.0

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(teacher_V, student_V)


class ReverseKL(_Divergence):
    """KL(student || teacher): the student must not say what the teacher would not (Gu et al. 2024, MiniLLM)."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    @property
    def interpolation(self) -> float:
        return 1.0

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(student_V, teacher_V)


class JSD(_Divergence):
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, GKD, eq. 1), at most ln 2 for beta 0.5."""

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture."""

    @property
    def interpolation(self) -> float:
        return self.beta

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        mixture_V = (teacher_V + math.log(self.beta)).logaddexp(student_V + math.log1p(-self.beta))
        return self.beta * _kl(teacher_V, mixture_V) + (1 - self.beta) * _kl(student_V, mixture_V)


AnyDivergence = Annotated[ForwardKL | ReverseKL | JSD, Field(discriminator="kind")]
