"""Losses between models with different tokenizers: likelihoods of shared spans (ALM) and sorted probabilities (ULD).

Shapes: B completions, T tokens, M spans, V vocabulary; a leading `...` is any batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SPAN_TEMPERATURE = 100.0
"""Temperature tau of the likelihoods of spans, as in the paper on ALM."""

_MAX_SPAN_LOGPROB = -1e-6
"""Greatest log-probability of a span, in nats; at 0, log(1 - p) would be infinite."""

_MIN_SPAN_LOGPROB = -1e4
"""Smallest log-probability of a span by a teacher, in nats: its exponential is 0, its product with 0 is not NaN."""


def likelihood_divergence(student_log_p: Tensor, teacher_log_p: Tensor, temperature: float) -> Tensor:
    """Return the binary KL of the student from the teacher on each span: ALM.

    With p = exp(log_p / tau) for each model it is `p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s))`, the
    forward KL between "this span" and "any other" (Minixhofer et al. 2025, Universal Cross-Tokenizer Distillation via
    Approximate Likelihood Matching). It is at least 0, and 0 only for equal likelihoods.

    Args:
        student_log_p: `[..., M]`, the student's log-probability of each span, at most 0; gradients flow to it.
        teacher_log_p: `[..., M]`, the teacher's; it is detached.
        temperature: tau, above 0; a large one emphasises differences between unlikely spans.

    Returns:
        `[..., M]`, in nats.
    """
    student = _tempered(student_log_p, temperature)
    teacher = _tempered(teacher_log_p.detach().clamp(min=_MIN_SPAN_LOGPROB), temperature)
    this_span = teacher.exp() * (teacher - student)
    other_spans = -teacher.expm1() * (_log_complement(teacher) - _log_complement(student))
    return this_span + other_spans


def span_divergences(log_p_BT: Tensor, spans_BT: Tensor, teacher_BT: Tensor) -> Tensor:
    """Return the student's divergence from a teacher on each span of text, `[B, T]`, at the span's first token.

    It is `tau * likelihood_divergence` with tau = 100, the paper's choice. The factor tau keeps the value comparable to
    a divergence per token: for a large tau it tends to `a log(a / b) + b - a`, where a and b are minus the
    log-likelihoods under teacher and student.

    Args:
        log_p_BT: The student's log-probability of each sampled token, in nats; gradients flow to it.
        spans_BT: The number of each token's span in its completion, -1 for none.
        teacher_BT: At j the teacher's log-probability of span j, in nats.
    """
    in_span_BT = spans_BT >= 0
    index_BT = spans_BT.clamp(min=0)
    in_span_log_p_BT = log_p_BT.masked_fill(~in_span_BT, 0.0)
    student_BT = torch.zeros_like(in_span_log_p_BT).scatter_add(1, index_BT, in_span_log_p_BT)
    divergence_BT = _SPAN_TEMPERATURE * likelihood_divergence(student_BT, teacher_BT, _SPAN_TEMPERATURE)
    is_first_BT = in_span_BT & (spans_BT != spans_BT.roll(1, dims=1))
    is_first_BT[:, 0] = in_span_BT[:, 0]
    return divergence_BT.gather(1, index_BT).masked_fill(~is_first_BT, 0.0)


def _tempered(log_p: Tensor, temperature: float) -> Tensor:
    """log p / tau, below 0. The bound has no gradient of its own: a student that is certain can still be wrong."""
    scaled = (log_p if log_p.dtype == torch.float64 else log_p.float()) / temperature
    return scaled - (scaled - _MAX_SPAN_LOGPROB).clamp(min=0).detach()


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)) for `log_p` below 0, without loss of digits (Maechler 2012)."""
    is_likely = log_p > -math.log(2.0)  # each branch gets harmless values where it is not used
    small = torch.log(-torch.expm1(torch.where(is_likely, log_p, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(is_likely, -1.0, log_p)))
    return torch.where(is_likely, small, large)


def sorted_difference(student_p: Tensor, teacher_p: Tensor) -> Tensor:
    """Return the L1 distance of two lists of probabilities `[..., V]`, each sorted in descending order: ULD.

    Tokens that the other vocabulary lacks can still be compared by the shape of their distribution (Boizard et al.
    2024, Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs). The shorter list is
    padded with zeros. Gradients flow to the student's.

    Returns:
        `[...]`, in [0, 2] for distributions.
    """
    size = max(student_p.shape[-1], teacher_p.shape[-1])
    student_sorted, teacher_sorted = (
        torch.nn.functional.pad(p.sort(dim=-1, descending=True).values, (0, size - p.shape[-1]))
        for p in (student_p, teacher_p.detach())
    )
    return (student_sorted - teacher_sorted).abs().sum(-1)
