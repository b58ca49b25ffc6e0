"""How much each token counts in the response signal.

Shapes: N tokens of a chunk, K teachers, V vocabulary. To add one, write a class and put its name in
`AnyTokenWeights`, the last line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor
from rld.utils.options import FrozenOptions


class _TokenWeights(FrozenOptions):
    def __call__(self, gap_BT: Tensor, teacher_BT: Tensor, student_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """How much each token counts, `[B, T]`, at least 0.

        Args:
            gap_BT: Divergence from the target.
            teacher_BT: Entropy of the target, in nats.
            student_BT: Entropy of the student, in nats.
            mask_BT: Tokens on which a teacher speaks.
        """
        raise NotImplementedError


class TargetConfidence(_TokenWeights):
    """A token counts by `exp(-H / temperature)`, H the target's entropy in nats: teachers teach where they are sure."""

    kind: Literal["sure"] = "sure"
    temperature: float = Field(1.0, gt=0)

    def __call__(self, gap_BT: Tensor, teacher_BT: Tensor, student_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return (-teacher_BT / self.temperature).exp()


class DivergenceWeights(_TokenWeights):
    """A token counts in proportion to its divergence, on average 1 in each completion.

    All of a completion count 1 where the student agrees but for rounding: below 1e-6 nats on average.
    """

    kind: Literal["gap"] = "gap"

    def __call__(self, gap_BT: Tensor, teacher_BT: Tensor, student_BT: Tensor, mask_BT: Tensor) -> Tensor:
        kept_BT = gap_BT.masked_fill(~mask_BT, 0.0)
        mean_B1 = kept_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        return (kept_BT / mean_B1).where(mean_B1 > 1e-6, mask_BT.to(kept_BT.dtype))


class TopShare(_TokenWeights):
    """Only the tokens count that are highest in their completion by `by`, at least one (Wang et al. 2025, 80/20 rule).

    The quantile is of each completion, so that it doesn't depend on how an update is split into micro-batches.
    """

    kind: Literal["top"] = "top"
    by: Literal["gap", "teacher_entropy", "student_entropy"] = "gap"
    share: float = Field(0.2, gt=0, le=1)
    """Share of each completion's tokens that count."""

    def __call__(self, gap_BT: Tensor, teacher_BT: Tensor, student_BT: Tensor, mask_BT: Tensor) -> Tensor:
        by_BT = {"gap": gap_BT, "teacher_entropy": teacher_BT, "student_entropy": student_BT}[self.by]
        ranks_BT = by_BT.masked_fill(~mask_BT, -float("inf")).argsort(stable=True, dim=-1, descending=True).argsort(-1)
        kept_B1 = (mask_BT.sum(-1, keepdim=True).double() * self.share - 1e-6).ceil()
        counts_BT: Tensor = ((ranks_BT < kept_B1) & mask_BT).to(gap_BT.dtype)
        return counts_BT


AnyTokenWeights = Annotated[TargetConfidence | DivergenceWeights | TopShare, Field(discriminator="kind")]
