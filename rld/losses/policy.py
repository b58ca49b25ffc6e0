"""Teacher-scored advantages, and weighted sums over tokens.

Shapes: B completions, T completion tokens, K teachers. Weights are per completion, because they depend on its skill.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_DELTA = 10.0
"""Bound of a normalised difference of log-probabilities, on either side of 0."""

_MAX_RESCALING = 0.5
"""The sign-preserving form scales an advantage by a factor in [1 - 0.5, 1 + 0.5]."""


def teacher_delta(
    scores_BKT: Tensor, spans_BKT: Tensor, log_old_BT: Tensor, shares_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability of the sampled tokens under the teachers minus that under the student that sampled them.

    A teacher with the student's tokenizer scores each token. One with another tokenizer scores spans of text; the
    tokens of a span count as one action, and each gets the difference of the whole span.

    Args:
        scores_BKT: Each teacher's log-probability of the span in which the token lies, in nats.
        spans_BKT: Number of the token's span in its completion, -1 where the teacher has no score.
        log_old_BT: The student's log-probability of each token when it was sampled, in nats.
        shares_BK: Weight of each teacher on each completion.

    Returns:
        `sum_k w_k delta_k` in nats, `[B, T]`, and the total weight of the teachers that have a score, `[B, T]`.
    """
    valid_BKT = spans_BKT >= 0
    index_BKT = spans_BKT.clamp(min=0)
    tokens_BKT = log_old_BT[:, None].expand_as(scores_BKT).masked_fill(~valid_BKT, 0.0)
    spans_of_student_BKT = torch.zeros_like(tokens_BKT).scatter_add_(-1, index_BKT, tokens_BKT).gather(-1, index_BKT)
    weight_BKT = shares_BK[..., None] * valid_BKT
    return (weight_BKT * (scores_BKT - spans_of_student_BKT)).sum(1), weight_BKT.sum(1)


def likelihood(scores_BKT: Tensor, spans_BKT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Each teacher's log-probability of a completion, `[B, K]` in nats, and how many tokens have a score, `[B, K]`.

    Args:
        scores_BKT: Each teacher's log-probability of the span in which the token lies, in nats.
        spans_BKT: Number of that span, -1 where the teacher has no score.
        mask_BT: Tokens that count.
    """
    valid_BKT = (spans_BKT >= 0) & mask_BT.bool()[:, None]
    index_BKT = spans_BKT.clamp(min=0)
    sizes_BKT = torch.zeros_like(scores_BKT).scatter_add_(-1, index_BKT, valid_BKT.to(scores_BKT)).gather(-1, index_BKT)
    return (scores_BKT / sizes_BKT.clamp(min=1)).masked_fill(~valid_BKT, 0.0).sum(-1), valid_BKT.sum(-1)


def mean_likelihood(scores_BKT: Tensor, spans_BKT: Tensor, mask_BT: Tensor) -> Tensor:
    """Each teacher's `likelihood` per token, `[B, K]` in nats; -inf without any score."""
    sums_BK, counts_BK = likelihood(scores_BKT, spans_BKT, mask_BT)
    return (sums_BK / counts_BK.clamp(min=1)).masked_fill(counts_BK == 0, -torch.inf)


def teacher_advantages(
    advantages_B: Tensor, delta_BT: Tensor, spread_B: Tensor, coefficient: float, taught_BT: Tensor
) -> Tensor:
    """Add the teacher-scored reward to group-normalised advantages: `A_b + c * clamp(delta_bt / s_b, -10, 10)`.

    It is added after the group normalisation, which would subtract its mean, and only to tokens with a teacher's score.

    Args:
        advantages_B: GRPO's advantages.
        delta_BT: `teacher_delta`, in nats.
        spread_B: s, the running root mean square of delta on the completion's skill, above 0.
        coefficient: c, at least 0.
        taught_BT: Which tokens get the term.

    Returns:
        Per-token advantages `[B, T]`.
    """
    term_BT = coefficient * (delta_BT / spread_B[:, None]).clamp(-_MAX_DELTA, _MAX_DELTA)
    return advantages_B[:, None] + term_BT.masked_fill(~taught_BT, 0.0)


def sign_preserving_advantages(advantages_B: Tensor, delta_BT: Tensor, coefficient: float, taught_BT: Tensor) -> Tensor:
    """Scale advantages by the teachers' scores without changing their signs.

    `A_b * ((1 - c) + c * clip(exp(sign(A_b) * delta_bt), 1 - e, 1 + e))` with e = 0.5. A token of a completion with a
    positive advantage counts more if it is likelier under the teachers than under the student, a token of one with a
    negative advantage if it is less likely. If all rewards of a group are equal, the advantages stay 0.

    Args:
        advantages_B: GRPO's advantages.
        delta_BT: `teacher_delta`, in nats.
        coefficient: c in [0, 1].
        taught_BT: Which tokens are scaled.

    Returns:
        Per-token advantages `[B, T]`.
    """
    agreement_BT = (advantages_B.sign()[:, None] * delta_BT).clamp(-_MAX_DELTA, _MAX_DELTA).exp()
    factor_BT = (1 - coefficient) + coefficient * agreement_BT.clamp(1 - _MAX_RESCALING, 1 + _MAX_RESCALING)
    return advantages_B[:, None] * factor_BT.masked_fill(~taught_BT, 1.0)


def weighted_sum(values_BT: Tensor, weight_B: Tensor, mask_BT: Tensor) -> Tensor:
    """`sum_b w_b sum_t m_bt l_bt`, `[]`; masked values may be NaN."""
    return (values_BT.masked_fill(mask_BT == 0, 0.0).sum(-1) * weight_B).sum()


def sum_over_teachers(values_BKT: Tensor, shares_BK: Tensor) -> Tensor:
    """Sum over teachers with the weight of each teacher on the completion: `[B, T]`."""
    return (values_BKT * shares_BK[..., None]).sum(1)
