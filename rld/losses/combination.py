"""How several teachers become one target, and which tokens count how much.

Two unions of frozen models. An `AnyCombination` decides, per skill or completion, how the controller's teacher weights
are used (`shares`, `chosen`), and per token which distribution the student is drawn to (`target`). An `AnyTokenWeights`
says how much each token counts. Nothing here carries a gradient.

Shapes: B completions, T tokens, N tokens of a chunk, K teachers, V vocabulary. To add one, write a class and put its
name in its union, the last lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rld.utils.options import FrozenOptions

if TYPE_CHECKING:
    from torch import Tensor


class _Combination(FrozenOptions):
    @property
    def pools(self) -> bool:
        """Whether the teachers are merged into one target; otherwise the divergences from each are added up."""
        return True

    @property
    def compares(self) -> bool:
        """Whether `chosen` has a say."""
        return False

    @property
    def needs_one_vocabulary(self) -> bool:
        """Whether the rule makes no sense of teachers whose distributions can't be laid side by side."""
        return False

    def shares(self, weights_SK: Tensor) -> Tensor:
        """Teacher weights of each skill, from the controller's; 0 where those are, with the same sum."""
        return weights_SK

    def chosen(self, weights_BK: Tensor, likelihood_BK: Tensor, correct_B: Tensor, group: int) -> Tensor:
        """Teacher weights of each completion, once the teachers have spoken.

        Args:
            weights_BK: The skill's weights, 0 where a teacher is shut out.
            likelihood_BK: Each teacher's mean log-probability per sampled token, -inf where it said nothing.
            correct_B: Whether the completion was verified to be correct.
            group: Completions of one prompt, which lie side by side.

        Returns:
            `[B, K]`, 0 where `weights_BK` is, with the same sum in each row.
        """
        return weights_BK

    def target(self, log_p_KNV: Tensor, weights_NK: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution to draw the student to, and how strongly; the weighted mixture of probabilities.

        Args:
            log_p_KNV: The teachers' log-probabilities.
            weights_NK: Their weights at each token, 0 where one is silent.

        Returns:
            Log-probabilities `[N, V]` and a strength `[N]`, 0 where no teacher speaks.
        """
        return _mixture(log_p_KNV, weights_NK), weights_NK.sum(-1)


class Mixture(_Combination):
    """The weighted mixture of the teachers' probabilities, which is what forward KLs add up to (linear pool).

    With the controller's weights, which follow verified successes, it is the verified-gate mixture.
    """

    kind: Literal["mixture"] = "mixture"


class Geometric(_Combination):
    """The normalised weighted product of the teachers' probabilities, which is what reverse KLs add up to (log pool).

    Each teacher has a veto: one that is wrong takes the right token away.
    """

    kind: Literal["geometric"] = "geometric"

    @property
    def needs_one_vocabulary(self) -> bool:
        return True

    def target(self, log_p_KNV: Tensor, weights_NK: Tensor) -> tuple[Tensor, Tensor]:
        shares_KN = _shares(weights_NK)
        # A silent teacher has no veto, not even by a probability of 0, whose logarithm times 0 is NaN.
        terms = (shares_KN[..., None] * log_p_KNV).masked_fill((shares_KN == 0)[..., None], 0.0)
        return terms.sum(0).log_softmax(-1), weights_NK.sum(-1)


class Sum(_Combination):
    """No common target: the weighted sum of the divergences from each teacher."""

    kind: Literal["sum"] = "sum"

    @property
    def pools(self) -> bool:
        return False


class Confidence(_Combination):
    """The mixture, in which at each token a teacher counts by `exp(-H / temperature)`, H its entropy in nats.

    After Kwon et al. 2020 (EBKD). It needs neither verifier nor gold answers, and is fooled by confident mistakes.
    """

    kind: Literal["confidence"] = "confidence"
    temperature: float = Field(1.0, gt=0)
    """Nats of entropy that lower a teacher's weight by a factor e."""

    @property
    def needs_one_vocabulary(self) -> bool:
        return True

    def target(self, log_p_KNV: Tensor, weights_NK: Tensor) -> tuple[Tensor, Tensor]:
        # In logarithms, because exp(-H / temperature) of all teachers may be too small for a float.
        odds_NK = _shares(weights_NK).T.log() - entropy(log_p_KNV).T / self.temperature
        return _mixture(log_p_KNV, odds_NK.softmax(-1)), weights_NK.sum(-1)


class Agreement(_Combination):
    """The mixture, but silence where the teachers contradict each other.

    Their disagreement `sum_k w_k KL(teacher_k || mixture)` is at most the entropy of the weights; a teacher that has
    all the weight never disagrees.
    """

    kind: Literal["agreement"] = "agreement"
    limit: float = Field(0.2, gt=0)
    """Disagreement in nats above which a token teaches nothing."""

    @property
    def needs_one_vocabulary(self) -> bool:
        return True

    def target(self, log_p_KNV: Tensor, weights_NK: Tensor) -> tuple[Tensor, Tensor]:
        target_NV = _mixture(log_p_KNV, weights_NK)
        p_KNV = log_p_KNV.exp()
        unsaid_KNV = (p_KNV == 0) | (target_NV == -float("inf"))
        apart_KN = (p_KNV * (log_p_KNV - target_NV)).masked_fill(unsaid_KNV, 0.0).sum(-1)
        disagreement_N = (apart_KN * _shares(weights_NK)).sum(0)
        return target_NV, weights_NK.sum(-1).masked_fill(disagreement_N > self.limit, 0.0)


class Route(_Combination):
    """One teacher at a time: the one to which the controller gives the most weight on the skill.

    Teachers with the same weight share it. The others are not run.
    """

    kind: Literal["route"] = "route"

    def shares(self, weights_SK: Tensor) -> Tensor:
        most_SK = (weights_SK == weights_SK.amax(-1, keepdim=True)).to(weights_SK)
        routed_SK: Tensor = most_SK / most_SK.sum(-1, keepdim=True) * weights_SK.sum(-1, keepdim=True)
        return routed_SK


class BestOf(_Combination):
    """One teacher per prompt: the one that finds the prompt's verified-correct completions the likeliest.

    Where no completion of the prompt is correct, the controller's weights decide as in `mixture`. After Zhang et al.
    2022 (CA-MKD), with verified completions in place of gold labels.
    """

    kind: Literal["best_of"] = "best_of"

    @property
    def compares(self) -> bool:
        return True

    def chosen(self, weights_BK: Tensor, likelihood_BK: Tensor, correct_B: Tensor, group: int) -> Tensor:
        num = weights_BK.shape[1]
        counted_BK = correct_B[:, None] & (weights_BK > 0) & likelihood_BK.isfinite()
        sums_GK = likelihood_BK.masked_fill(~counted_BK, 0.0).view(-1, group, num).sum(1)
        counts_GK = counted_BK.view(-1, group, num).sum(1)
        means_GK = (sums_GK / counts_GK.clamp(min=1)).masked_fill(counts_GK == 0, -float("inf"))
        best_B = means_GK.argmax(-1).repeat_interleave(group)
        known_B = (counts_GK > 0).any(-1).repeat_interleave(group)
        total_B1 = weights_BK.sum(-1, keepdim=True)
        alone_BK = weights_BK.new_zeros(weights_BK.shape).scatter_(1, best_B[:, None], total_B1)
        return alone_BK.where(known_B[:, None], weights_BK)


def _shares(weights_NK: Tensor) -> Tensor:
    """The weights of each token as shares of 1, `[K, N]`; equal ones where no teacher speaks."""
    total_N1 = weights_NK.sum(-1, keepdim=True)
    return (weights_NK / total_N1).where(total_N1 > 0, 1 / weights_NK.shape[1]).T


def _mixture(log_p_KNV: Tensor, weights_NK: Tensor) -> Tensor:
    return (log_p_KNV + _shares(weights_NK)[..., None].log()).logsumexp(0)


def entropy(log_p_V: Tensor) -> Tensor:
    """Entropy in nats over the last axis; a probability of 0 adds nothing."""
    p = log_p_V.exp()
    per_token: Tensor = -(p * log_p_V).masked_fill(p == 0, 0.0).sum(-1)
    return per_token


AnyCombination = Annotated[
    Mixture | Geometric | Sum | Confidence | Agreement | Route | BestOf, Field(discriminator="kind")
]
