"""Divergences of the student's token distributions from a teacher's.

A divergence is a frozen pydantic model with a `__call__`: from log-probabilities `[..., V]` over the vocabulary V it
returns `[...]` in nats, at least 0, and 0 only where the two distributions are equal. Training calls it on chunks of
tokens (`fused_response.py`), so that the logits of a whole batch never exist at once, and takes their gradient by
autograd. The exceptions are JSD and forward KL from a mixture of teachers, the most common choices:
`chunk_divergence.py` computes them and their derivatives in closed form, and the tests compare those with the classes
here.

To add one, write a class with `__call__` and put its name in `AnyDivergence`, the last line.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field

from rld.utils.options import FrozenOptions

if TYPE_CHECKING:
    from torch import Tensor


def _kl_terms(p_V: Tensor, q_V: Tensor) -> Tensor:
    """Summands of KL(p || q) from log-probabilities; a token of probability 0 under p contributes 0."""
    p = p_V.exp()
    return (p * (p_V - q_V)).masked_fill_(p == 0, 0.0)


def _kl(p_V: Tensor, q_V: Tensor) -> Tensor:
    return _kl_terms(p_V, q_V).sum(-1)


def _mixture(p_V: Tensor, q_V: Tensor, share: float) -> Tensor:
    """Log of `share * p + (1 - share) * q`."""
    return (p_V + math.log(share)).logaddexp(q_V + math.log1p(-share))


def softened_target(student_V: Tensor, teacher_V: Tensor, teacher_share: Tensor | float) -> Tensor:
    """Log of a target between student and teacher: `softmax((1 - t) log student + t log teacher)`, without gradient.

    Source: Shing et al. 2025 (TAID), equation 4, with probabilities in place of logits.

    Args:
        student_V: The student's log-probabilities `[..., V]`.
        teacher_V: The teacher's.
        teacher_share: t in (0, 1], one number or `[..., 1]`.
    """
    return (student_V.detach() * (1 - teacher_share) + teacher_V * teacher_share).log_softmax(-1)


class _Divergence(FrozenOptions):
    def at(self, progress: float) -> Self:
        """The divergence at a point of training, from 0 at its start to 1 at its end; only `taid` changes."""
        return self

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        """Return the divergence `[...]` in nats; gradients flow to `student_V`.

        Args:
            student_V: The student's log-probabilities `[..., V]`.
            teacher_V: The teacher's, or the target's, without gradient.
        """
        raise NotImplementedError


class ForwardKL(_Divergence):
    """KL(teacher || student): the student must cover every token that the teacher may give (Hinton et al. 2015)."""

    kind: Literal["forward_kl"] = "forward_kl"

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(teacher_V, student_V)


class ReverseKL(_Divergence):
    """KL(student || teacher): the student must avoid tokens that the teacher avoids (Gu et al. 2024, MiniLLM)."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(student_V, teacher_V)


class JSD(_Divergence):
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, GKD, eq. 1); at most ln 2 for beta = 0.5.

    `beta KL(teacher || m) + (1 - beta) KL(student || m)` with `m = beta teacher + (1 - beta) student`.
    """

    kind: Literal["jsd"] = "jsd"
    beta: float = Field(0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture. Towards 0 and 1 the divergence vanishes; its limits in direction are
    forward_kl and reverse_kl."""

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        mixture_V = _mixture(teacher_V, student_V, self.beta)
        return self.beta * _kl(teacher_V, mixture_V) + (1 - self.beta) * _kl(student_V, mixture_V)


class SkewKL(_Divergence):
    """KL(teacher || a teacher + (1 - a) student): forward KL with a bounded gradient (Ko et al. 2024, DistiLLM)."""

    kind: Literal["skew_kl"] = "skew_kl"
    skew: float = Field(0.1, gt=0, lt=1)
    """The teacher's share a of the mixture."""

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(teacher_V, _mixture(teacher_V, student_V, self.skew))


class SkewReverseKL(_Divergence):
    """KL(student || a student + (1 - a) teacher): reverse KL with a bounded gradient (Ko et al. 2024, DistiLLM)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    skew: float = Field(0.1, gt=0, lt=1)
    """The student's share a of the mixture."""

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(student_V, _mixture(student_V, teacher_V, self.skew))


class AdaptiveKL(_Divergence):
    """Forward and reverse KL, weighted at each token by where the distributions differ (Wu et al. 2024, AKL,
    eq. 11 to 13).

    The teacher's likeliest tokens whose probabilities reach `head` are the head, all others the tail. Let g be the sum
    of the absolute differences of probability in each. The divergence is `w KL(teacher || student) + (1 - w)
    KL(student || teacher)`, where `w = g_head / (g_head + g_tail)` has no gradient. It sorts a part of the vocabulary,
    a larger one where the teacher's entropy is high.
    """

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    head: float = Field(0.5, gt=0, lt=1)
    """Probability of the teacher that the head contains."""

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        difference_V = (student_V.detach().exp() - teacher_V.exp()).abs()
        total, in_head = difference_V.sum(-1), self._in_head(teacher_V.exp(), difference_V)
        weight = (in_head / total.clamp(min=1e-30)).clamp(0, 1)
        return weight * _kl(teacher_V, student_V) + (1 - weight) * _kl(student_V, teacher_V)

    def _in_head(self, teacher_V: Tensor, difference_V: Tensor) -> Tensor:
        """Sum of the differences over the teacher's head."""
        size = min(64, teacher_V.shape[-1])
        while True:  # a head rarely has more than a few tokens
            largest, tokens = teacher_V.topk(size, dim=-1)
            before = largest.cumsum(-1) - largest
            if size == teacher_V.shape[-1] or bool((before[..., -1] >= self.head).all()):
                return difference_V.gather(-1, tokens).masked_fill(before >= self.head, 0.0).sum(-1)
            size = min(8 * size, teacher_V.shape[-1])


class Taid(_Divergence):
    """Forward KL from a target that moves from near the student to the teacher (Shing et al. 2025, TAID, eq. 4).

    The target is `softmax((1 - t) log student + t log teacher)`, without gradient; t grows linearly with the steps of
    the stage from `start` to 1. The paper's adaptive rate is left out: it is almost constant, because its momentum of
    relative loss changes stays near 0.
    """

    kind: Literal["taid"] = "taid"
    start: float = Field(0.4, gt=0, le=1)
    """t at the first step."""

    def at(self, progress: float) -> Self:
        return self.model_copy(update={"start": self.start + (1 - self.start) * min(max(progress, 0.0), 1.0)})

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return _kl(softened_target(student_V, teacher_V, self.start), student_V)


class TotalVariation(_Divergence):
    """Half the sum of the absolute differences of probability, in [0, 1] (Wen et al. 2023, f-DISTILL)."""

    kind: Literal["total_variation"] = "total_variation"

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        return 0.5 * (student_V.exp() - teacher_V.exp()).abs().sum(-1)


class AlphaBeta(_Divergence):
    """Alpha-beta divergence of student from teacher (Wang et al. 2025, ABKD, eq. 8; Cichocki et al. 2011).

    `-1/(ab) sum_v [ p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b) ]` with p the teacher and q the student; it tends to
    forward KL for a = 1, b to 0, and to reverse KL for a to 0, b = 1.
    """

    kind: Literal["alpha_beta"] = "alpha_beta"
    alpha: float = Field(0.2, gt=0, le=1)
    """Exponent of the teacher's probability; a larger one weighs tokens more where the two differ most."""
    beta: float = Field(0.7, gt=0, le=1)
    """Exponent of the student's probability; a larger one weighs tokens more to which the student gives a high one."""

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        a, b, total = self.alpha, self.beta, self.alpha + self.beta
        cross = (a * teacher_V + b * student_V).exp()
        return (a / total * (total * teacher_V).exp() + b / total * (total * student_V).exp() - cross).sum(-1) / (a * b)


AnyDivergence = Annotated[
    ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | AdaptiveKL | Taid | TotalVariation | AlphaBeta,
    Field(discriminator="kind"),
]
