"""From per-token streams to weighted terms, and the sums that a controller looks at.

Shapes: B completions, T tokens, K teachers, S skills. Weights are per completion, because they depend on its skill.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CLAMP = 10.0


def teacher_advantages(
    advantages_B: Tensor, delta_BT: Tensor, spread_B: Tensor, coefficient: float, taught_BT: Tensor
) -> Tensor:
    """Add the teacher-scored reward to group-normalised advantages: `A_b + c * clamp(delta_bt / s_b, -10, 10)`.

    It comes after the group normalisation, which would otherwise take its mean away, and only where a teacher speaks
    (`taught_BT`).

    Args:
        advantages_B: GRPO's advantages.
        delta_BT: `sum_j w_j (log p_j(y_t) - log pi_old(y_t))` on the sampled tokens, in nats.
        spread_B: Running root-mean-square of delta on the completion's skill, > 0.
        coefficient: c.
        taught_BT: Which tokens get the term.

    Returns:
        Per-token advantages `[B, T]`.
    """
    term_BT = coefficient * (delta_BT / spread_B[:, None]).clamp(-_CLAMP, _CLAMP)
    return advantages_B[:, None] + term_BT.masked_fill(~taught_BT, 0.0)


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

    `table` is `[S, 3 + 4K]`: per skill the completion tokens, the squared delta and its count; then per teacher the
    divergence, its token count, the feature distance and its token count. `scalars` is `[7]`: the tokens that the
    student was run on, then squared gradient norm and token count for each of policy, response and feature.
    """

    table: Tensor
    scalars: Tensor

    @classmethod
    def empty(cls, num_skills: int, num_teachers: int, device: torch.device) -> Ledger:
        return cls(
            torch.zeros(num_skills, 3 + 4 * num_teachers, dtype=torch.float64, device=device),
            torch.zeros(7, dtype=torch.float64, device=device),
        )

    def add_tokens(self, skills_B: Tensor, mask_BT: Tensor, num_run: Tensor) -> None:
        self.table[:, 0].index_add_(0, skills_B, mask_BT.sum(-1).double())
        self.scalars[0] += num_run

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
