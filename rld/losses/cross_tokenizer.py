"""Losses between models with different tokenizers: likelihoods of shared spans (ALM) and sorted probabilities (ULD).

Shapes: M spans, V vocabulary; a leading `...` is any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CERTAIN = -1e-6  # the greatest log-probability of a span: at 0, log(1 - p) is infinite

_TAU = 100.0

_IMPOSSIBLE = -1e4  # the least of a teacher's: its exp is 0, but 0 times it is no NaN


def span_likelihood(ours_log_p: Tensor, theirs_log_p: Tensor, temperature: float) -> Tensor:
    """Binary KL of the student from the teacher on each span: ALM.

    With p = exp(log_p / tau) on each side, `p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s))`, the forward KL
    between "this span" and "any other" (Minixhofer et al. 2025, Universal Cross-Tokenizer Distillation via Approximate
    Likelihood Matching). It is at least 0, and 0 only for equal likelihoods.

    Args:
        ours_log_p: `[..., M]`, the student's log-probability of each span, at most 0; gradients flow to it.
        theirs_log_p: `[..., M]`, the teacher's, detached.
        temperature: tau, above 0; a large one brings out differences between unlikely spans.

    Returns:
        `[..., M]`, in nats.
    """
    student = _tempered(ours_log_p, temperature)
    teacher = _tempered(theirs_log_p.detach().clamp(min=_IMPOSSIBLE), temperature)
    chosen = teacher.exp() * (teacher - student)
    others = -teacher.expm1() * (_log_complement(teacher) - _log_complement(student))
    return chosen + others


def span_gaps(log_p_BT: Tensor, spans_BT: Tensor, theirs_BT: Tensor) -> Tensor:
    """The student's distance from a teacher on each span of text, `[B, T]`, placed at the span's first token.

    It is `tau * span_likelihood` with tau = 100, the paper's choice. The factor keeps it in nats whatever tau: for a
    large one it tends to `a log(a / b) + b - a` with a and b minus the log-likelihoods by teacher and student.

    Args:
        log_p_BT: The student's log-probability of each sampled token; gradients flow to it.
        spans_BT: The span of each token, -1 for none.
        theirs_BT: At j the teacher's log-probability of span j.
    """
    inside_BT = spans_BT >= 0
    index_BT = spans_BT.clamp(min=0)
    kept_BT = log_p_BT.masked_fill(~inside_BT, 0.0)
    ours_BT = torch.zeros_like(kept_BT).scatter_add(1, index_BT, kept_BT)
    gaps_BT = _TAU * span_likelihood(ours_BT, theirs_BT, _TAU)
    first_BT = inside_BT & (spans_BT != spans_BT.roll(1, dims=1))
    first_BT[:, 0] = inside_BT[:, 0]
    return gaps_BT.gather(1, index_BT).masked_fill(~first_BT, 0.0)


def _tempered(log_p: Tensor, temperature: float) -> Tensor:
    """log p / tau, kept below 0 in value; the gradient is let through, because a sure student can still be wrong."""
    scaled = (log_p if log_p.dtype == torch.float64 else log_p.float()) / temperature
    return scaled - (scaled - _CERTAIN).clamp(min=0).detach()


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)) without loss of digits (Maechler 2012); `log_p` is below 0."""
    near = log_p > -0.6931471805599453  # 1 - exp is small there: each branch gets safe values where it isn't chosen
    small = torch.log(-torch.expm1(torch.where(near, log_p, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near, -1.0, log_p)))
    return torch.where(near, small, large)


def sorted_difference(student_rest: Tensor, teacher_rest: Tensor) -> Tensor:
    """L1 distance of two lists of probabilities `[..., V]`, each sorted from great to small: ULD.

    Tokens that the other vocabulary lacks can still be compared by the shape of their distribution (Boizard et al.
    2024, Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs). The shorter list is
    padded with zeros. Gradients flow to the student's.

    Returns:
        `[...]`, in [0, 2] for distributions.
    """
    size = max(student_rest.shape[-1], teacher_rest.shape[-1])
    ours, theirs = (
        torch.nn.functional.pad(rest.sort(dim=-1, descending=True).values, (0, size - rest.shape[-1]))
        for rest in (student_rest, teacher_rest.detach())
    )
    return (ours - theirs).abs().sum(-1)
