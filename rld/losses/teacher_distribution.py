"""A teacher's log-probabilities over the student's vocabulary: from its hidden states, or from its k likeliest tokens.

Shapes: N tokens, H width, V vocabulary, J chosen tokens; a leading `...` is any batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rld.models.heads import LMHead
from rld.models.logprob_source import TopKLogprobs

MIN_PROBABILITY = torch.finfo(torch.float32).tiny
"""Smallest probability whose logarithm is taken; smaller ones are raised to it."""

LOG_ZERO = -1e4
"""Logarithm that stands for a probability of 0, in nats: its exponential is 0, and its product with 0 is not NaN."""

MIN_TAIL_LOGPROB = -23.0
"""Smallest log-probability, in nats, of all tokens that two vocabularies do not share; about 1e-10, so that a
divergence stays finite and comparable where one vocabulary has no such token."""


def with_tail(log_p_V: Tensor, tokens_J: Tensor, min_tail: float = -float("inf")) -> Tensor:
    """Log-probabilities of the chosen tokens, and of all others together but at least `min_tail`: `[..., J + 1]`."""
    others_V = log_p_V.scatter(-1, tokens_J, -float("inf"))
    return torch.cat([log_p_V.gather(-1, tokens_J), others_V.logsumexp(-1, keepdim=True).clamp(min=min_tail)], dim=-1)


def log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at a temperature."""
    return (logits_NV if temperature == 1 else logits_NV / temperature).log_softmax(-1)


def softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Probabilities at a temperature."""
    return (logits_NV if temperature == 1 else logits_NV / temperature).softmax(-1)


@dataclass(frozen=True, kw_only=True)
class TeacherDistribution(ABC):
    """One teacher's distributions at N tokens."""

    valid_N: Tensor
    """Tokens at which the teacher has a distribution; elsewhere its values mean nothing."""
    shared_ids: tuple[Tensor, Tensor] | None = None
    """For a teacher with another vocabulary, the student's and the teacher's ids `[J]` of the tokens that both have.
    None: the teacher has the student's vocabulary."""

    @property
    @abstractmethod
    def num_logits(self) -> int:
        """Logits per token that are computed to get the log-probabilities."""

    def with_float32_logits(self) -> TeacherDistribution:
        """The same with an output head whose logits are not rounded to half precision."""
        return self

    @abstractmethod
    def at(self, rows: slice) -> TeacherDistribution:
        """The distributions at some of the tokens."""

    @abstractmethod
    def log_probabilities(self, student_NV: Tensor, temperature: float) -> Tensor:
        """Log-probabilities `[N, V]` in nats, at least `LOG_ZERO`; V is the teacher's vocabulary if ids are shared.

        Args:
            student_NV: The student's log-probabilities, without gradient.
            temperature: Of the distributions, above 0.
        """


@dataclass(frozen=True, kw_only=True)
class FullDistribution(TeacherDistribution):
    """Distributions that the teacher's output head gives from its last hidden states."""

    head: LMHead
    hidden_NH: Tensor

    @property
    def num_logits(self) -> int:
        return len(self.head.weight)

    def with_float32_logits(self) -> FullDistribution:
        return replace(self, head=self.head.with_float32_logits())

    def at(self, rows: slice) -> FullDistribution:
        return replace(self, valid_N=self.valid_N[rows], hidden_NH=self.hidden_NH[rows])

    def log_probabilities(self, student_NV: Tensor, temperature: float) -> Tensor:
        return log_softmax(self.head.logits(self.hidden_NH), temperature).clamp_(min=LOG_ZERO)


@dataclass(frozen=True, kw_only=True)
class TopKDistribution(TeacherDistribution):
    """Distributions known at the k likeliest tokens; the remaining probability is spread as the student spreads it."""

    top_k: TopKLogprobs
    """`[N]`, at the temperature of the objective."""

    @property
    def num_logits(self) -> int:
        return 0

    def at(self, rows: slice) -> TopKDistribution:
        return replace(self, valid_N=self.valid_N[rows], top_k=self.top_k[rows])

    def log_probabilities(self, student_NV: Tensor, temperature: float) -> Tensor:
        return self.top_k.over_vocabulary(student_NV).clamp_(min=LOG_ZERO)
