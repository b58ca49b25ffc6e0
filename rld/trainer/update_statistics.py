"""Sums over the micro-batches of one optimiser step that the controller reads.

Shapes: B completions, T tokens, K teachers, S skills.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rld.types import SIGNALS, Signal


@dataclass
class UpdateStatistics:
    """Sums over one optimiser step, to be added over processes before anyone looks at them.

    `table` is `[S, 3 + 4K]`: per skill the completion tokens, the squared delta and its count; then per teacher the
    divergence, its token count, the feature distance and its token count. `scalars` is `[7]`: the tokens that the
    student computed, then squared gradient norm and token count for each of policy, response and feature.
    """

    table: Tensor
    scalars: Tensor

    @classmethod
    def empty(cls, num_skills: int, num_teachers: int, device: torch.device) -> UpdateStatistics:
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
