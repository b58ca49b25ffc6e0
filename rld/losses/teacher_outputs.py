"""What one teacher hands over about a micro-batch.

Shapes: B completions, T completion tokens, H width, L mapped layers, V tokens that two vocabularies share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rld.models.heads import LMHead
from rld.models.logprob_source import TopKLogprobs
from rld.types import Align

TeacherTensor = Literal["hidden", "layers", "ids", "log_p", "tail", "sampled", "spans", "span_scores"]
"""What a rollout may carry of each teacher that was run, J being the tokens of its top-k log-probabilities:

- `hidden` `[B, T, H]`: last hidden states at the positions that predict the completion tokens;
- `layers` `[B, L, T, H]`: the states that the feature signal compares;
- `ids`, `log_p` `[B, T, J]`, `tail`, `sampled` `[B, T]`: top-k log-probabilities, the fields of `TopKLogprobs`;
- `spans`, `span_scores` `[B, T]`: for another tokenizer, the number of each token's span or -1, and at j the
  log-probability of span j.
"""


def teacher_key(k: int, name: TeacherTensor) -> str:
    """Return the key under which a rollout carries a tensor of teacher k."""
    return f"teacher_{k}_{name}"


@dataclass(frozen=True)
class TeacherOutputs:
    """What one teacher says about a batch of completions."""

    head: LMHead | None
    """None for one that hands over shortlists, unless a feature loss reads its states out."""
    hidden_BTH: Tensor | None
    """Last hidden states at the positions that predict the completion tokens; None when it was not run at all."""
    layers_BLTH: Tensor | None
    """The states that the feature signal compares; None when it was not run, or the feature signal is off."""
    tokens_BT: Tensor
    """The tokens on which this teacher speaks; elsewhere its states mean nothing."""
    align: Align | None = None
    """How a teacher with another tokenizer teaches; None for one with the student's. The fields below are its alone."""
    spans_BT: Tensor | None = None
    """The span of each token, counted from 0 in each row, -1 for none; None when it was not run."""
    span_scores_BT: Tensor | None = None
    """At j its log-probability of span j, in nats at the rollout's temperature; 0 behind the last span."""
    vocabulary: tuple[Tensor, Tensor] | None = None
    """Ids `[V]` of the student's and of the teacher's tokens that spell the same. Its head is not cut."""
    shortlist: TopKLogprobs | None = None
    """`[B, T]`, what it hands over instead of hidden states; None when it does not, or was not run at all."""

    @property
    def was_run(self) -> bool:
        return self.hidden_BTH is not None or self.shortlist is not None
