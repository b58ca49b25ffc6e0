"""How much each token counts in the response signal.

Shapes: B completions, T completion tokens. To add a rule, write a class with `__call__` and put its name in
`AnyTokenWeights`, the last line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rld.utils.options import FrozenOptions

if TYPE_CHECKING:
    from torch import Tensor


class _TokenWeights(FrozenOptions):
    def __call__(
        self, divergence_BT: Tensor, target_entropy_BT: Tensor, student_entropy_BT: Tensor, mask_BT: Tensor
    ) -> Tensor:
        """Return how much each token counts, `[B, T]`, at least 0.

        Args:
            divergence_BT: Divergence from the teachers' target, in nats.
            target_entropy_BT: Entropy of the target, in nats.
            student_entropy_BT: Entropy of the student, in nats.
            mask_BT: Tokens at which a teacher is valid.
        """
        raise NotImplementedError


class TargetConfidence(_TokenWeights):
    """A token counts by `exp(-H / temperature)`, where H is the target's entropy in nats."""

    kind: Literal["sure"] = "sure"
    temperature: float = Field(1.0, gt=0)
    """Nats of entropy that lower a token's weight by a factor e."""

    def __call__(
        self, divergence_BT: Tensor, target_entropy_BT: Tensor, student_entropy_BT: Tensor, mask_BT: Tensor
    ) -> Tensor:
        return (-target_entropy_BT / self.temperature).exp()


class DivergenceWeights(_TokenWeights):
    """A token counts in proportion to its divergence; the mean weight of each completion is 1.

    If the mean divergence of a completion is below 1e-6 nats, which is rounding, all its tokens count 1.
    """

    kind: Literal["gap"] = "gap"

    def __call__(
        self, divergence_BT: Tensor, target_entropy_BT: Tensor, student_entropy_BT: Tensor, mask_BT: Tensor
    ) -> Tensor:
        masked_BT = divergence_BT.masked_fill(~mask_BT, 0.0)
        mean_B1 = masked_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        return (masked_BT / mean_B1).where(mean_B1 > 1e-6, mask_BT.to(masked_BT.dtype))


class TopShare(_TokenWeights):
    """Only the share of each completion's tokens counts that is highest by a quantity, and at least one token.

    After Wang et al. 2025 (the 80/20 rule: entropy of the student). The quantile is taken within each completion, so it
    does not depend on how an update is split into micro-batches.
    """

    kind: Literal["top"] = "top"
    by: Literal["gap", "teacher_entropy", "student_entropy"] = "gap"
    """The quantity: divergence from the target, entropy of the target, or entropy of the student."""
    share: float = Field(0.2, gt=0, le=1)
    """Share of each completion's tokens that count."""

    def __call__(
        self, divergence_BT: Tensor, target_entropy_BT: Tensor, student_entropy_BT: Tensor, mask_BT: Tensor
    ) -> Tensor:
        quantities = {
            "gap": divergence_BT,
            "teacher_entropy": target_entropy_BT,
            "student_entropy": student_entropy_BT,
        }
        masked_BT = quantities[self.by].masked_fill(~mask_BT, -float("inf"))
        ranks_BT = masked_BT.argsort(stable=True, dim=-1, descending=True).argsort(-1)
        limit_B1 = (mask_BT.sum(-1, keepdim=True).double() * self.share - 1e-6).ceil()
        counts_BT: Tensor = ((ranks_BT < limit_B1) & mask_BT).to(divergence_BT.dtype)
        return counts_BT


AnyTokenWeights = Annotated[TargetConfidence | DivergenceWeights | TopShare, Field(discriminator="kind")]
