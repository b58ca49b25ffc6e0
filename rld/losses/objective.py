"""What the response signal minimises: a divergence, a rule that combines teachers, a temperature, token weights.

Shapes: V vocabulary; a leading `...` is any batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from torch import Tensor

from rld.losses.combination import AnyCombination
from rld.losses.divergences import AnyDivergence
from rld.losses.teacher_distribution import with_tail
from rld.losses.token_weights import AnyTokenWeights
from rld.utils.options import parse_option


class Divergence(Protocol):
    """A member of `AnyDivergence`, or one over its likeliest tokens."""

    def at(self, progress: float) -> Divergence:
        """The divergence at a point of training, from 0 at its start to 1 at its end."""
        ...

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        """The divergence `[...]` between log-probabilities `[..., V]`."""
        ...


@dataclass(frozen=True)
class TopK:
    """A divergence over the teacher's `k` likeliest tokens and one outcome that stands for all other tokens.

    Without that outcome the probability that the student gives to the other tokens would have no effect.
    """

    divergence: Divergence
    k: int

    def at(self, progress: float) -> TopK:
        return replace(self, divergence=self.divergence.at(progress))

    def __call__(self, student_V: Tensor, teacher_V: Tensor) -> Tensor:
        tokens = teacher_V.topk(min(self.k, teacher_V.shape[-1] - 1), dim=-1).indices
        return self.divergence(with_tail(student_V, tokens), with_tail(teacher_V, tokens))


class ResponseOptions(Protocol):
    """The plain options of the response signal; `RLDConfig` has them. None stands for the default."""

    divergence: dict[str, Any] | str | None
    combine_teachers: dict[str, Any] | str | None
    token_weights: dict[str, Any] | str | None
    response_temperature: float | None
    response_top_k: int | None
    temperature: float


@dataclass(frozen=True)
class ResponseObjective:
    """How the student's token distributions are matched to the teachers'."""

    divergence: Divergence
    combination: AnyCombination
    temperature: float
    """Temperature of the student's and the teachers' distributions, above 0."""
    token_weights: AnyTokenWeights | None = None
    """How much each token counts. None: all count 1."""
    teacher_share_N: Tensor | None = None
    """Of the N tokens of a call, the share of the teachers in a softened target, in (0, 1]: the rest is the student's
    own distribution (`softened_target`). Teachers with another vocabulary are not softened. None: nothing is."""

    @classmethod
    def from_config(cls, options: ResponseOptions) -> ResponseObjective:
        """Parse the plain options once; the defaults are `jsd`, `mixture`, and the temperature of the rollout.

        Raises:
            RecipeError: a kind or an option of a kind that does not exist, or a value out of range.
        """
        divergence = cast(Divergence, parse_option("divergence", AnyDivergence, options.divergence or "jsd"))
        if options.response_top_k is not None:
            divergence = TopK(divergence, options.response_top_k)
        weights = options.token_weights
        return cls(
            divergence=divergence,
            combination=parse_option("combine_teachers", AnyCombination, options.combine_teachers or "mixture"),
            temperature=options.response_temperature or options.temperature,
            token_weights=None if weights is None else parse_option("token_weights", AnyTokenWeights, weights),
        )

    def at(self, progress: float) -> ResponseObjective:
        """The objective at a point of training, from 0 at its start to 1 at its end."""
        return replace(self, divergence=self.divergence.at(progress))

    def of_tokens(self, rows: slice | Tensor) -> ResponseObjective:
        """The objective of some of the tokens of a call."""
        return self if self.teacher_share_N is None else replace(self, teacher_share_N=self.teacher_share_N[rows])
