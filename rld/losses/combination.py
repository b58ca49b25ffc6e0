"""How the distributions of several teachers become one target.

A combination decides how the controller's teacher weights are used on a skill (`shares`) and on a completion
(`completion_weights`), and which distribution the student is matched to at a token (`target`). Nothing here has a
gradient.

Shapes: B completions, N tokens of a chunk, K teachers, S skills, G prompts, V vocabulary. To add one, write a class and
put its name in `AnyCombination`, the last lines.
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
        """Whether the teachers are merged into one target; otherwise the weighted divergences from each are added."""
        return True

    @property
    def compares(self) -> bool:
        """Whether `completion_weights` changes the weights."""
        return False

    @property
    def needs_one_vocabulary(self) -> bool:
        """Whether all teachers must have the student's vocabulary, because their probabilities are combined."""
        return False

    def shares(self, weights_SK: Tensor) -> Tensor:
        """Teacher weights `[S, K]` of each skill from the controller's: with the same sum, and 0 where those are 0."""
        return weights_SK

    def completion_weights(self, weights_BK: Tensor, likelihood_BK: Tensor, correct_B: Tensor, group: int) -> Tensor:
        """Teacher weights of each completion, from the teachers' likelihoods of the completions.

        Args:
            weights_BK: The skill's weights, 0 where a teacher must not teach.
            likelihood_BK: Each teacher's mean log-probability per sampled token, -inf where it has none.
            correct_B: Whether the completion was verified to be correct.
            group: Number of completions of one prompt, which follow one another.

        Returns:
            `[B, K]`, 0 where `weights_BK` is 0, with the same sum in each row.
        """
        return weights_BK

    def target(self, log_p_KNV: Tensor, weights_NK: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution to which the student is matched, and its weight; by default the mixture.

        Args:
            log_p_KNV: The teachers' log-probabilities.
            weights_NK: Their weights at each token, 0 where a teacher has no distribution.

        Returns:
            Log-probabilities `[N, V]`, and the target's weight `[N]`, 0 where no teacher has a distribution.
        """
        return _mixture(log_p_KNV, weights_NK), weights_NK.sum(-1)


class Mixture(_Combination):
    """The weighted mixture of the teachers' probabilities (linear pool).

    Forward KL from it differs by a constant from the weighted sum of the forward KLs from each teacher. With the
    weights of the controller `gap`, which follow verified successes, it is the verified-gate mixture.
    """

    kind: Literal["mixture"] = "mixture"


class Geometric(_Combination):
    """The normalised weighted product of the teachers' probabilities (logarithmic pool).

    Reverse KL from it differs by a constant from the weighted sum of the reverse KLs from each teacher. A teacher that
    gives the correct token a probability near 0 removes it from the target.
    """

    kind: Literal["geometric"] = "geometric"

    @property
    def needs_one_vocabulary(self) -> bool:
        return True

    def target(self, log_p_KNV: Tensor, weights_NK: Tensor) -> tuple[Tensor, Tensor]:
        shares_KN = _shares(weights_NK)
        # Without weight a teacher has no effect; log 0 times a weight of 0 would be NaN.
        terms = (shares_KN[..., None] * log_p_KNV).masked_fill((shares_KN == 0)[..., None], 0.0)
        return terms.sum(0).log_softmax(-1), weights_NK.sum(-1)


class Sum(_Combination):
    """No common target: the weighted sum of the divergences from each teacher."""

    kind: Literal["sum"] = "sum"

    @property
    def pools(self) -> bool:
        return False


class Confidence(_Combination):
    """The mixture, where at each token a teacher's weight is multiplied by `exp(-H / temperature)`, H its entropy.

    After Kwon et al. 2020 (EBKD). It needs neither a verifier nor gold answers, and prefers a teacher that is confident
    and wrong.
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
    """The mixture, without weight where the teachers disagree.

    The disagreement is `sum_k w_k KL(teacher_k || mixture)`, the generalised Jensen-Shannon divergence (Lin 1991). It
    is at most the entropy of the weights, and 0 if one teacher has all the weight.
    """

    kind: Literal["agreement"] = "agreement"
    limit: float = Field(0.2, gt=0)
    """Disagreement in nats above which a token's target has no weight."""

    @property
    def needs_one_vocabulary(self) -> bool:
        return True

    def target(self, log_p_KNV: Tensor, weights_NK: Tensor) -> tuple[Tensor, Tensor]:
        target_NV = _mixture(log_p_KNV, weights_NK)
        p_KNV = log_p_KNV.exp()
        is_zero_KNV = (p_KNV == 0) | (target_NV == -float("inf"))
        divergence_KN = (p_KNV * (log_p_KNV - target_NV)).masked_fill(is_zero_KNV, 0.0).sum(-1)
        disagreement_N = (divergence_KN * _shares(weights_NK)).sum(0)
        return target_NV, weights_NK.sum(-1).masked_fill(disagreement_N > self.limit, 0.0)


class Route(_Combination):
    """The teacher to which the controller gives the greatest weight on the skill; several with equal weights share it.

    The other teachers are not run.
    """

    kind: Literal["route"] = "route"

    def shares(self, weights_SK: Tensor) -> Tensor:
        is_greatest_SK = (weights_SK == weights_SK.amax(-1, keepdim=True)).to(weights_SK)
        shares_SK: Tensor = is_greatest_SK / is_greatest_SK.sum(-1, keepdim=True) * weights_SK.sum(-1, keepdim=True)
        return shares_SK


class BestOf(_Combination):
    """The teacher under which the prompt's verified-correct completions have the greatest mean log-probability.

    If no completion of the prompt is correct, the controller's weights are used as in `mixture`; so they are where none
    of the teachers of a completion scored a correct one. After Zhang et al. 2022 (CA-MKD), with verified completions in
    place of gold labels.
    """

    kind: Literal["best_of"] = "best_of"

    @property
    def compares(self) -> bool:
        return True

    def completion_weights(self, weights_BK: Tensor, likelihood_BK: Tensor, correct_B: Tensor, group: int) -> Tensor:
        num = weights_BK.shape[1]
        counted_BK = correct_B[:, None] & (weights_BK > 0) & likelihood_BK.isfinite()
        sums_GK = likelihood_BK.masked_fill(~counted_BK, 0.0).view(-1, group, num).sum(1)
        counts_GK = counted_BK.view(-1, group, num).sum(1)
        means_GK = (sums_GK / counts_GK.clamp(min=1)).masked_fill(counts_GK == 0, -float("inf"))
        # A teacher that does not teach on a completion is not chosen for it, though it may be the best of the prompt.
        means_BK = means_GK.repeat_interleave(group, 0).masked_fill(weights_BK <= 0, -float("inf"))
        best_B, is_known_B = means_BK.argmax(-1), means_BK.isfinite().any(-1)
        total_B1 = weights_BK.sum(-1, keepdim=True)
        best_weights_BK = weights_BK.new_zeros(weights_BK.shape).scatter_(1, best_B[:, None], total_B1)
        return best_weights_BK.where(is_known_B[:, None], weights_BK)


def _shares(weights_NK: Tensor) -> Tensor:
    """The weights of each token over their sum, `[K, N]`; equal shares where the sum is 0."""
    total_N1 = weights_NK.sum(-1, keepdim=True)
    return (weights_NK / total_N1).where(total_N1 > 0, 1 / weights_NK.shape[1]).T


def _mixture(log_p_KNV: Tensor, weights_NK: Tensor) -> Tensor:
    return (log_p_KNV + _shares(weights_NK)[..., None].log()).logsumexp(0)


def entropy(log_p_V: Tensor) -> Tensor:
    """Entropy `[...]` in nats of log-probabilities `[..., V]`; a probability of 0 contributes 0."""
    p = log_p_V.exp()
    per_token: Tensor = -(p * log_p_V).masked_fill(p == 0, 0.0).sum(-1)
    return per_token


AnyCombination = Annotated[
    Mixture | Geometric | Sum | Confidence | Agreement | Route | BestOf, Field(discriminator="kind")
]
