"""The outputs of one teacher for the completions of a micro-batch.

Shapes: B completions, T completion tokens, H width, L states of the feature signal, J tokens of a top-k list, V tokens
that two vocabularies share.
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
    """The outputs of one teacher: hidden states with the head that reads them, or top-k log-probabilities."""

    head: LMHead | None
    """The teacher's output head. None for a teacher with top-k log-probabilities, unless the feature loss needs it."""
    hidden_BTH: Tensor | None
    """Last hidden states at the positions that predict the completion tokens. None: the teacher was not run."""
    layers_BLTH: Tensor | None
    """The states that the feature signal compares. None: the teacher was not run, or the feature signal is off."""
    valid_BT: Tensor
    """Tokens at which the teacher has a distribution and may teach; elsewhere its outputs mean nothing."""
    align: Align | None = None
    """How a teacher with another tokenizer is aligned. None: it has the student's tokenizer."""
    spans_BT: Tensor | None = None
    """With `align`: the number of each token's span in its completion, from 0, or -1. None: it was not run."""
    span_scores_BT: Tensor | None = None
    """With `align`: at j its log-probability of span j, in nats at the rollout's temperature; 0 after the last span."""
    shared_ids: tuple[Tensor, Tensor] | None = None
    """With `align`: the student's and the teacher's ids `[V]` of the tokens that spell the same bytes."""
    top_k: TopKLogprobs | None = None
    """`[B, T]`, of a teacher without hidden states. None: it has hidden states, or was not run."""

    @property
    def was_run(self) -> bool:
        """Whether there are distributions or spans to learn from."""
        return self.hidden_BTH is not None or self.top_k is not None
