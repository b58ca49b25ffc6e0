"""How far a student is from a teacher, at every token.

A divergence is a frozen model that is the callable: on log-probabilities `[..., V]` (log-softmaxed over the
vocabulary V) it returns `[...]`, never negative, 0 where the two agree. It is defined by its `summand` over the
vocabulary; that call is the plain reference, and training sums the same summand in tiles, so that it never holds all V
at once: with TRL's kernel where an `interpolation` reaches the divergence, else with `tiles.py`.

To add one, write a class with a `summand` and put its name in `AnyDivergence`, the last line.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor


def _kl(p_V: Tensor, q_V: Tensor) -> Tensor:
    """Summands of KL(p || q) from log-probabilities; a token that p never says contributes 0."""
    p = p_V.exp()
    return (p * (p_V - q_V)).masked_fill(p == 0, 0.0)


def _mixture(p_V: Tensor, q_V: Tensor, share: float) -> Tensor:
    """Log of `share * p + (1 - share) * q`."""
    return (p_V + math.log(share)).logaddexp(q_V + math.log1p(-share))


class _Divergence(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @property
    def interpolation(self) -> float | None:
        """TRL's `beta`: 0 is forward KL, 1 reverse KL, between them the generalised Jensen-Shannon divergence.
        None: the divergence is none of these."""
        return None

    def summand(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        """What each token of the vocabulary adds to the divergence."""
        raise NotImplementedError

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return self.summand(student_V, teacher_V).sum(-1)


class ForwardKL(_Divergence):
    """KL(teacher || student): the student must cover everything the teacher might say (Hinton et al. 2015)."""

    kind: Literal["forward_kl"] = "forward_kl"

    @property
    def interpolation(self) -> float:
        return 0.0

    def summand(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(teacher_V, student_V)


class ReverseKL(_Divergence):
    """KL(student || teacher): the student must not say what the teacher would not (Gu et al. 2024, MiniLLM)."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    @property
    def interpolation(self) -> float:
        return 1.0

    def summand(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(student_V, teacher_V)


class JSD(_Divergence):
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, GKD, eq. 1), at most ln 2 for beta 0.5."""

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture."""

    @property
    def interpolation(self) -> float:
        return self.beta

    def summand(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        mixture_V = _mixture(teacher_V, student_V, self.beta)
        return self.beta * _kl(teacher_V, mixture_V) + (1 - self.beta) * _kl(student_V, mixture_V)


class SkewKL(_Divergence):
    """KL(teacher || a teacher + (1 - a) student): forward KL with a bounded gradient (Ko et al. 2024, DistiLLM)."""

    kind: Literal["skew_kl"] = "skew_kl"
    skew: float = Field(0.1, gt=0, lt=1)
    """The teacher's share a of the mixture."""

    def summand(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(teacher_V, _mixture(teacher_V, student_V, self.skew))


class SkewReverseKL(_Divergence):
    """KL(student || a student + (1 - a) teacher): reverse KL with a bounded gradient (Ko et al. 2024, DistiLLM)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    skew: float = Field(0.1, gt=0, lt=1)
    """The student's share a of the mixture."""

    def summand(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(student_V, _mixture(student_V, teacher_V, self.skew))


class TotalVariation(_Divergence):
    """Half the summed differences of probability, in [0, 1] (Wen et al. 2023, f-DISTILL)."""

    kind: Literal["total_variation"] = "total_variation"

    def summand(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return 0.5 * (student_V.exp() - teacher_V.exp()).abs()


class AlphaBeta(_Divergence):
    """Alpha-beta divergence of student from teacher (Wang et al. 2025, ABKD, eq. 8; Cichocki et al. 2011).

    `-1/(ab) sum_v [ p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b) ]` with p the teacher and q the student; it tends to
    forward KL for a = 1, b to 0, and to reverse KL for a to 0, b = 1.
    """

    kind: Literal["alpha_beta"] = "alpha_beta"
    alpha: float = Field(0.2, gt=0, le=1)
    """Weight on where the two differ most."""
    beta: float = Field(0.7, gt=0, le=1)
    """Weight on where the student is sure."""

    def summand(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        a, b, both = self.alpha, self.beta, self.alpha + self.beta
        cross = (a * teacher_V + b * student_V).exp()
        return (a / both * (both * teacher_V).exp() + b / both * (both * student_V).exp() - cross) / (a * b)


AnyDivergence = Annotated[
    ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | TotalVariation | AlphaBeta, Field(discriminator="kind")
]
