"""Teacher-scored advantages and weighted sums over tokens.

Shapes: B completions, T tokens, K teachers, S skills. Weights are per completion, because they depend on its skill.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CLAMP = 10.0

_SWING = 0.5
"""How far the sign-preserving form may scale an advantage."""


def teacher_delta(
    scores_BKT: Tensor, spans_BKT: Tensor, log_old_BT: Tensor, shares_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """How much likelier the teachers find what the student sampled than the student did.

    A teacher of the same tokenizer scores each token; one of another scores spans of text, and a span's tokens are one
    act: each gets the difference of the whole span.

    Args:
        scores_BKT: Log-probability that each teacher gives to the token's span.
        spans_BKT: Number of the token's span in its completion, -1 where the teacher is silent.
        log_old_BT: The student's log-probability of each token when it was sampled.
        shares_BK: Teacher weights.

    Returns:
        `sum_k w_k delta_k` in nats, `[B, T]`, and the total weight of the teachers that speak.
    """
    speaks_BKT = spans_BKT >= 0
    own_BKT = log_old_BT[:, None].expand_as(scores_BKT).masked_fill(~speaks_BKT, 0.0)
    index_BKT = spans_BKT.clamp(min=0)
    own_BKT = torch.zeros_like(own_BKT).scatter_add_(-1, index_BKT, own_BKT).gather(-1, index_BKT)
    weight_BKT = shares_BK[..., None] * speaks_BKT
    return (weight_BKT * (scores_BKT - own_BKT)).sum(1), weight_BKT.sum(1)


def mean_likelihood(scores_BKT: Tensor, spans_BKT: Tensor, mask_BT: Tensor) -> Tensor:
    """Each teacher's mean log-probability per token of a completion, `[B, K]`; -inf where it says nothing.

    Args:
        scores_BKT: Log-probability of the span that each token lies in.
        spans_BKT: Number of that span, -1 where the teacher is silent.
        mask_BT: Tokens that count.
    """
    spoken_BKT = (spans_BKT >= 0) & mask_BT.bool()[:, None]
    index_BKT = spans_BKT.clamp(min=0)
    sizes_BKT = (
        torch.zeros_like(scores_BKT).scatter_add_(-1, index_BKT, spoken_BKT.to(scores_BKT)).gather(-1, index_BKT)
    )
    sums_BK = (scores_BKT / sizes_BKT.clamp(min=1)).masked_fill(~spoken_BKT, 0.0).sum(-1)
    counts_BK = spoken_BKT.sum(-1)
    return (sums_BK / counts_BK.clamp(min=1)).masked_fill(counts_BK == 0, -torch.inf)


def teacher_advantages(
    advantages_B: Tensor, delta_BT: Tensor, spread_B: Tensor, coefficient: float, taught_BT: Tensor
) -> Tensor:
    """Add the teacher-scored reward to group-normalised advantages: `A_b + c * clamp(delta_bt / s_b, -10, 10)`.

    It comes after the group normalisation, which would otherwise take its mean away, and only where a teacher speaks
    (`taught_BT`).

    Args:
        advantages_B: GRPO's advantages.
        delta_BT: `teacher_delta`, in nats.
        spread_B: Running root-mean-square of delta on the completion's skill, > 0.
        coefficient: c.
        taught_BT: Which tokens get the term.

    Returns:
        Per-token advantages `[B, T]`.
    """
    term_BT = coefficient * (delta_BT / spread_B[:, None]).clamp(-_CLAMP, _CLAMP)
    return advantages_B[:, None] + term_BT.masked_fill(~taught_BT, 0.0)


def sign_preserving_advantages(advantages_B: Tensor, delta_BT: Tensor, coefficient: float, taught_BT: Tensor) -> Tensor:
    """Scale advantages by what the teachers think, never turning one round.

    `A_b * ((1 - c) + c * clip(exp(sign(A_b) * delta_bt), 1 - e, 1 + e))` with e = 0.5: a token of a good completion
    counts more where the teachers find it likelier than the student did, one of a bad completion where they find it
    less likely. Where all rewards of a group agree, nothing is added.

    Args:
        advantages_B: GRPO's advantages.
        delta_BT: `teacher_delta`, in nats.
        coefficient: c in [0, 1].
        taught_BT: Which tokens are scaled.

    Returns:
        Per-token advantages `[B, T]`.
    """
    favour_BT = (advantages_B.sign()[:, None] * delta_BT).clamp(-_CLAMP, _CLAMP).exp()
    factor_BT = (1 - coefficient) + coefficient * favour_BT.clamp(1 - _SWING, 1 + _SWING)
    return advantages_B[:, None] * factor_BT.masked_fill(~taught_BT, 1.0)


def weighted_sum(stream_BT: Tensor, weight_B: Tensor, mask_BT: Tensor) -> Tensor:
    """`sum_b w_b sum_t m_bt l_bt`; a masked value never reaches the sum, not even as NaN * 0."""
    return (stream_BT.masked_fill(mask_BT == 0, 0.0).sum(-1) * weight_B).sum()


def blend(stream_BKT: Tensor, teachers_BK: Tensor) -> Tensor:
    """Mean over teachers with the completion's teacher weights: `[B, T]`."""
    return (stream_BKT * teachers_BK[..., None]).sum(1)
