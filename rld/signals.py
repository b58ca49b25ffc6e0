"""From per-token streams to weighted terms, and the sums that a controller looks at.

Shapes: B completions, T tokens, K teachers, S skills. Weights are per completion, because they depend on its skill.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rld.types import SIGNALS, Signal

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


@dataclass
class Ledger:
    """Sums over one optimiser step, to be added over processes before anyone looks at them.

    `table` is `[S, 3 + 4K]`: per skill the completion tokens, the squared delta and its count; then per teacher the
    divergence, its token count, the feature distance and its token count. `scalars` is `[7]`: the tokens that the
    student computed, then squared gradient norm and token count for each of policy, response and feature.
    """

    table: Tensor
    scalars: Tensor

    @classmethod
    def empty(cls, num_skills: int, num_teachers: int, device: torch.device) -> Ledger:
        return cls(
            torch.zeros(num_skills, 3 + 4 * num_teachers, dtype=torch.float64, device=device),
            torch.zeros(7, dtype=torch.float64, device=device),
        )

    def add_tokens(self, skills_B: Tensor, mask_BT: Tensor, num_computed: int) -> None:
        self.table[:, 0].index_add_(0, skills_B, mask_BT.sum(-1).double())
        self.scalars[0] += num_computed

    def add_gradient(
        self, signal: Signal, total: Tensor, hidden_BTH: Tensor, weight_B: Tensor, counts_BT: Tensor
    ) -> Tensor | None:
        """Measure how strongly a signal pulls at the student's last hidden states, its weight taken out.

        Args:
            signal: Which one.
            total: The signal's weighted sum over tokens.
            hidden_BTH: The states that predict the completion tokens, as the head saw them.
            weight_B: The signal's weights; completions of weight 0 are left out.
            counts_BT: The tokens that count.

        Returns:
            The gradient of the unweighted sum at the tokens that count, 0 elsewhere, `[B, T, H]`; None if none do.
        """
        counted_BT = counts_BT.bool() & (weight_B > 0)[:, None]
        if not counted_BT.any():
            return None
        (gradient_BTH,) = torch.autograd.grad(total, hidden_BTH, retain_graph=True, materialize_grads=True)
        gradient_BTH = gradient_BTH.to(torch.float64, copy=True)
        gradient_BTH /= weight_B.double().clamp(min=1e-12)[:, None, None]
        gradient_BTH.masked_fill_(~counted_BT[..., None], 0.0)
        i = SIGNALS.index(signal)
        self.scalars[1 + 2 * i] += gradient_BTH.pow(2).sum()
        self.scalars[2 + 2 * i] += counted_BT.sum()
        return gradient_BTH

    def add_delta(self, skills_B: Tensor, delta_BT: Tensor, mask_BT: Tensor, taught_BT: Tensor) -> None:
        counted_BT = mask_BT.bool() & taught_BT
        squares = delta_BT.double().pow(2).masked_fill(~counted_BT, 0.0).sum(-1)
        self.table[:, 1].index_add_(0, skills_B, squares)
        self.table[:, 2].index_add_(0, skills_B, counted_BT.sum(-1).double())

    def add_streams(
        self,
        skills_B: Tensor,
        mask_BT: Tensor,
        tokens_BKT: Tensor,
        divergence_BKT: Tensor | None,
        feature_BKT: Tensor | None,
    ) -> None:
        counted_BKT = mask_BT.bool()[:, None] & tokens_BKT
        num_teachers = tokens_BKT.shape[1]
        for block, stream_BKT in enumerate((divergence_BKT, feature_BKT)):
            if stream_BKT is not None:
                first = 3 + 2 * block * num_teachers
                sums_BK = stream_BKT.detach().double().masked_fill(~counted_BKT, 0.0).sum(-1)
                self.table[:, first : first + num_teachers].index_add_(0, skills_B, sums_BK)
                counts = self.table[:, first + num_teachers : first + 2 * num_teachers]
                counts.index_add_(0, skills_B, counted_BKT.sum(-1).double())
