"""From per-token streams to weighted terms, and the sums that a controller looks at.

Shapes: B completions, T tokens, K teachers, S skills. Weights are per completion, because they depend on its skill.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CLAMP = 10.0


def teacher_advantages(
    advantages_B: Tensor, delta_BT: Tensor, spread_B: Tensor, coefficient: float, shaped_B: Tensor
) -> Tensor:
    """Add the teacher-scored reward to group-normalised advantages: `A_b + c * clamp(delta_bt / s_b, -10, 10)`.

    It comes after the group normalisation, which would otherwise take its mean away, and only where a teacher was
    run (`shaped_B`).

    Args:
        advantages_B: GRPO's advantages.
        delta_BT: `sum_j w_j (log p_j(y_t) - log pi_old(y_t))` on the sampled tokens, in nats.
        spread_B: Running root-mean-square of delta on the completion's skill, > 0.
        coefficient: c.
        shaped_B: Which completions get the term.

    Returns:
        Per-token advantages `[B, T]`.
    """
    term_BT = coefficient * (delta_BT / spread_B[:, None]).clamp(-_CLAMP, _CLAMP)
    return advantages_B[:, None] + term_BT * shaped_B[:, None]


def weighted_sum(stream_BT: Tensor, weight_B: Tensor, mask_BT: Tensor) -> Tensor:
    """`sum_b w_b sum_t m_bt l_bt`; a masked value never reaches the sum, not even as NaN * 0."""
    return (stream_BT.masked_fill(mask_BT == 0, 0.0).sum(-1) * weight_B).sum()


def blend(stream_BKT: Tensor, teachers_BK: Tensor) -> Tensor:
    """Mean over teachers with the completion's teacher weights: `[B, T]`."""
    return (stream_BKT * teachers_BK[..., None]).sum(1)


def gradient_square(gradient_BTH: Tensor, counts_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of the squared gradient norm, and how many tokens that were."""
    counted_BT = counts_BT.bool()
    squares_BT = gradient_BTH.double().pow(2).sum(-1).masked_fill(~counted_BT, 0.0)
    return squares_BT.sum(), counted_BT.sum().double()


@dataclass
class Ledger:
    """Sums over one optimiser step, to be added over processes before anyone looks at them.

    `table` is `[S, 3 + 3K]`: per skill the tokens, the squared delta and its count, then per teacher the divergence,
    the feature distance, and their token count. `scalars` is `[7]`: the policy loss, then squared gradient norm and
    token count for each of policy, response and feature.
    """

    table: Tensor
    scalars: Tensor

    @classmethod
    def empty(cls, num_skills: int, num_teachers: int, device: torch.device) -> Ledger:
        return cls(
            torch.zeros(num_skills, 3 + 3 * num_teachers, dtype=torch.float64, device=device),
            torch.zeros(7, dtype=torch.float64, device=device),
        )

    def add_tokens(self, skills_B: Tensor, mask_BT: Tensor) -> None:
        self.table[:, 0].index_add_(0, skills_B, mask_BT.sum(-1).double())

    def add_delta(self, skills_B: Tensor, delta_BT: Tensor, mask_BT: Tensor, shaped_B: Tensor) -> None:
        counted_BT = mask_BT.bool() & shaped_B[:, None]
        squares = delta_BT.double().pow(2).masked_fill(~counted_BT, 0.0).sum(-1)
        self.table[:, 1].index_add_(0, skills_B, squares)
        self.table[:, 2].index_add_(0, skills_B, counted_BT.sum(-1).double())

    def add_streams(
        self, skills_B: Tensor, mask_BT: Tensor, rows_BK: Tensor, divergence: Tensor | None, feature: Tensor | None
    ) -> None:
        counted_BKT = mask_BT.bool()[:, None] & rows_BK[..., None]
        num_teachers = rows_BK.shape[1]
        for offset, stream in ((0, divergence), (1, feature), (2, torch.ones_like(counted_BKT, dtype=torch.float64))):
            if stream is not None:
                sums_BK = stream.detach().double().masked_fill(~counted_BKT, 0.0).sum(-1)
                columns = slice(3 + offset * num_teachers, 3 + (offset + 1) * num_teachers)
                self.table[:, columns].index_add_(0, skills_B, sums_BK)
