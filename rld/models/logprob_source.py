"""What a teacher says in few bytes: its likeliest tokens, all others as one, and the token that was sampled.

A teacher that is not in this process, or whose scores were stored, can't hand over hidden states for its head to read.
It hands over a shortlist per token instead. In the response signal a shortlist stands for a whole distribution, in
which the tokens that it does not name have the student's own proportions: `TopKLogprobs.over_vocabulary`. Every
f-divergence from it (all KLs, JSD, total variation) has the value and the gradient of the divergence over the named
tokens and one outcome more, because equal proportions inside an outcome add nothing; and it can be mixed with other
teachers like any other.

Shapes: N tokens, J tokens of a shortlist, V vocabulary, L taps, H width; a leading `...` is any batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.models.hidden_states import StateKey


@dataclass(frozen=True)
class TopKLogprobs:
    """What a teacher says of some tokens, at one temperature, in nats."""

    ids: Tensor
    """`[..., J]`, its likeliest tokens in ascending order."""
    log_p: Tensor
    """`[..., J]`, their log-probabilities."""
    tail: Tensor
    """`[...]`, the log-probability of all others together."""
    sampled: Tensor
    """`[...]`, the log-probability of the token that was sampled."""
    layers: Tensor | None = None
    """`[..., L, H]`, hidden states for the feature signal, if they were asked for."""

    @classmethod
    def of(cls, log_p_NV: Tensor, sampled_N: Tensor, k: int) -> TopKLogprobs:
        """Cut distributions to their `k` likeliest tokens."""
        ids_NJ = log_p_NV.topk(min(k, log_p_NV.shape[-1]), dim=-1).indices.sort(dim=-1).values
        tail_N = log_p_NV.scatter(-1, ids_NJ, -float("inf")).logsumexp(-1)
        sampled_N1 = log_p_NV.gather(-1, sampled_N[:, None])
        return cls(ids_NJ.int(), log_p_NV.gather(-1, ids_NJ), tail_N, sampled_N1[:, 0])

    @classmethod
    def concatenated(cls, parts: Sequence[TopKLogprobs]) -> TopKLogprobs:
        """The shortlists one after another along their first axis."""
        with torch.autocast(parts[0].ids.device.type, enabled=False):  # on a CPU it can't join half precision
            return cls(*(torch.cat(tensors) for tensors in zip(*(part.tensors() for part in parts), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        """Those that it has, in the order of its fields."""
        listed = self.ids, self.log_p, self.tail, self.sampled
        return listed if self.layers is None else (*listed, self.layers)

    def is_sound(self) -> bool:
        """Whether ids ascend, log-probabilities are at most 0 up to rounding, those of what was sampled finite, and so
        are states."""
        numbers = all(bool((part < 1e-2).all()) for part in (self.log_p, self.tail, self.sampled))
        likeliest = self.log_p.amax(-1).maximum(self.tail)
        numbers &= all(bool((part > -torch.inf).all()) for part in (self.sampled, likeliest))
        numbers &= self.layers is None or bool(self.layers.isfinite().all())
        return numbers and bool((self.ids >= 0).all()) and bool((self.ids.diff(dim=-1) > 0).all())

    def __getitem__(self, index: slice | Tensor) -> TopKLogprobs:
        return TopKLogprobs(*(tensor[index] for tensor in self.tensors()))

    def split(self, sizes: Sequence[int]) -> list[TopKLogprobs]:
        return [
            TopKLogprobs(*parts)
            for parts in zip(*(tensor.split(list(sizes)) for tensor in self.tensors()), strict=True)
        ]

    def over_vocabulary(self, log_s_NV: Tensor) -> Tensor:
        """The whole distribution `[N, V]` that the shortlist stands for beside a student's.

        Args:
            log_s_NV: The student's log-probabilities, without gradient. Tokens that it lacks are left out.
        """
        size = log_s_NV.shape[-1]
        ids_NJ = self.ids.long()
        index_NJ = ids_NJ.where(ids_NJ < size, size)  # one column more takes what is left out
        log_p_NJ = self.log_p.to(log_s_NV.dtype).masked_fill(ids_NJ >= size, -float("inf"))
        named_NJ1 = torch.cat([log_p_NJ, self.tail.to(log_s_NV.dtype)[:, None]], dim=-1).log_softmax(-1)
        padded_NV1 = torch.nn.functional.pad(log_s_NV, (0, 1), value=-float("inf"))
        rest_NV1 = padded_NV1.scatter(-1, index_NJ, -float("inf"))
        total_N1 = rest_NV1.logsumexp(-1, keepdim=True).clamp(min=torch.finfo(rest_NV1.dtype).min)  # no -inf - -inf
        whole_NV1 = (rest_NV1 - total_N1 + named_NJ1[:, -1:]).scatter(-1, index_NJ, named_NJ1[:, :-1])
        return whole_NV1[:, :size]


class ScoredSequence(NamedTuple):
    """Token ids of a prompt and its completion, without padding."""

    ids: list[int]
    num_scored: int
    """How many at the end are to be scored: at least 1, and at least one token stands before them."""


@dataclass(frozen=True)
class SourceInfo:
    """What a lister says of itself."""

    fingerprint: str
    """Tells its weights from others."""
    ends: frozenset[int]
    """The token ids that end a completion of its."""
    num_parameters: int
    """0 when it does not say."""


class LogprobSource(ABC):
    """A teacher that hands over shortlists and answers, not a head and what it reads. It reads the student's tokens."""

    name: str
    """What it is called where nobody gave it a name."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether its model is in another process, so that it may be asked while models in this one run."""
        return False

    @property
    def model(self) -> PreTrainedModel | None:
        """The model behind it; None when it is in another process."""
        return None

    @property
    def taps(self) -> tuple[StateKey, ...]:
        """Where the states were read that its shortlists have; none for shortlists without any."""
        return ()

    @abstractmethod
    def meet(self, student: PreTrainedTokenizerBase) -> None:
        """Make sure that it is there and reads the student's tokens.

        Raises:
            TeacherError: it isn't, or doesn't.
        """

    @abstractmethod
    def about(self) -> SourceInfo:
        """What it said of itself when it was met."""

    def num_parameters(self) -> int:
        """Parameters that take part in a forward; 0 when it does not say."""
        return self.about().num_parameters

    @abstractmethod
    def score(self, passages: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        """A shortlist for each passage, of its scored tokens."""

    def take_found(self) -> int:
        """Tokens of passages, since the last call, that it need not be run on again."""
        return 0

    @abstractmethod
    def answer(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        """Greedy answers to prompts in token ids."""
