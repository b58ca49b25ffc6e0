"""A teacher's log-probabilities over the student's vocabulary, whole or as its top k with a tail.

Shapes: N tokens, V vocabulary, K teachers, J listed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rld.models.heads import LMHead
from rld.models.logprob_source import TopKLogprobs

MIN_PROBABILITY, LOG_ZERO, MIN_TAIL_LOGPROB = torch.finfo(torch.float32).tiny, -1e4, -23.0
"""A probability next to 0, the logarithm of one that is 0 in any precision, and of the rest where there is none."""


def with_tail(log_p_V: Tensor, tokens_J: Tensor, least: float = -float("inf")) -> Tensor:
    """Log-probabilities of the chosen tokens, and of all others together, at least `least`: `[..., J + 1]`."""
    others_V = log_p_V.scatter(-1, tokens_J, -float("inf"))
    return torch.cat([log_p_V.gather(-1, tokens_J), others_V.logsumexp(-1, keepdim=True).clamp(min=least)], dim=-1)


@dataclass(frozen=True)
class TeacherDistribution:
    """What one teacher says at N tokens: hidden states and the head that reads them, or a shortlist."""

    said: tuple[LMHead, Tensor] | TopKLogprobs
    """The head and the states `[N, H]`, or the shortlist `[N]`, which is at the temperature of the matching."""
    speaks_N: Tensor
    """Where it means something."""
    shared: tuple[Tensor, Tensor] | None = None
    """For another vocabulary: the student's and this teacher's ids of the tokens that both have, in one order."""

    @property
    def vocabulary(self) -> int:
        """Logits that reading it takes; a shortlist takes none."""
        return 0 if isinstance(self.said, TopKLogprobs) else len(self.said[0].weight)

    def in_float32(self) -> TeacherDistribution:
        """The same, with a head in full precision."""
        if isinstance(self.said, TopKLogprobs):
            return self
        return replace(self, said=(self.said[0].in_float32(), self.said[1]))

    def at(self, rows: slice) -> TeacherDistribution:
        """What it says at some of the tokens."""
        said = self.said[rows] if isinstance(self.said, TopKLogprobs) else (self.said[0], self.said[1][rows])
        return replace(self, said=said, speaks_N=self.speaks_N[rows])

    def log_probabilities(self, log_s_NV: Tensor, temperature: float) -> Tensor:
        """Its log-probabilities `[N, V]`; a shortlist takes those of what it does not name from the student's."""
        if isinstance(self.said, TopKLogprobs):
            return self.said.over_vocabulary(log_s_NV).clamp_(min=LOG_ZERO)
        head, hidden_NH = self.said
        return log_softmax(head.logits(hidden_NH), temperature).clamp_(min=LOG_ZERO)


def log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    return (logits_NV if temperature == 1 else logits_NV / temperature).log_softmax(-1)
