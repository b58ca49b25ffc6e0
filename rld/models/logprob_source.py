"""Top-k log-probabilities: the likeliest tokens of a teacher, all other tokens as one, and the token that was sampled.

A teacher in another process, or one whose scores were stored, cannot hand over hidden states for its head to read. It
hands over top-k log-probabilities instead. In the response signal they stand for a whole distribution, in which the
tokens that they do not name have the proportions that the student gives them (`TopKLogprobs.over_vocabulary`). Every
f-divergence from it (all KL divergences, JSD, total variation) has the value and the gradient of the divergence over
the named tokens and one further outcome, because equal proportions inside an outcome add nothing. It can be mixed with
other teachers like any other distribution.

Shapes: N tokens, J named tokens, V vocabulary, L captured states, H width; a leading `...` is any batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import TeacherDown
from rld.models.hidden_states import StateKey
from rld.types import Answer

T = TypeVar("T")


@dataclass(frozen=True)
class TopKLogprobs:
    """Log-probabilities of a teacher, in nats and at one temperature."""

    ids: Tensor
    """`[..., J]`, the likeliest tokens in ascending order of their ids."""
    log_p: Tensor
    """`[..., J]`, their log-probabilities."""
    tail: Tensor
    """`[...]`, the log-probability of all other tokens together."""
    sampled: Tensor
    """`[...]`, the log-probability of the token that was sampled."""
    layers: Tensor | None = None
    """`[..., L, H]`, hidden states for the feature signal, where they are needed."""

    @classmethod
    def of(cls, log_p_NV: Tensor, sampled_N: Tensor, k: int) -> TopKLogprobs:
        """Cut distributions to their `k` likeliest tokens."""
        ids_NJ = log_p_NV.topk(min(k, log_p_NV.shape[-1]), dim=-1).indices.sort(dim=-1).values
        tail_N = log_p_NV.scatter(-1, ids_NJ, -float("inf")).logsumexp(-1)
        sampled_N1 = log_p_NV.gather(-1, sampled_N[:, None])
        return cls(ids_NJ.int(), log_p_NV.gather(-1, ids_NJ), tail_N, sampled_N1[:, 0])

    @classmethod
    def concatenated(cls, parts: Sequence[TopKLogprobs]) -> TopKLogprobs:
        """Concatenate along the first axis."""
        with torch.autocast(parts[0].ids.device.type, enabled=False):  # on a CPU it can't join half precision
            return cls(*(torch.cat(tensors) for tensors in zip(*(part.tensors() for part in parts), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that are not None, in the order of the fields."""
        tensors = self.ids, self.log_p, self.tail, self.sampled
        return tensors if self.layers is None else (*tensors, self.layers)

    def is_valid(self) -> bool:
        """Tell whether the values can be what they should be.

        Ids ascend from 0 on. Log-probabilities are at most 0, up to rounding; those of the sampled tokens and of the
        likeliest outcomes are finite, and so are hidden states.
        """
        at_most_0 = all(bool((part < 1e-2).all()) for part in (self.log_p, self.tail, self.sampled))
        likeliest = self.log_p.amax(-1).maximum(self.tail)
        above_minus_infinity = all(bool((part > -torch.inf).all()) for part in (self.sampled, likeliest))
        ascending = bool((self.ids >= 0).all()) and bool((self.ids.diff(dim=-1) > 0).all())
        return (
            at_most_0
            and above_minus_infinity
            and ascending
            and (self.layers is None or bool(self.layers.isfinite().all()))
        )

    def __getitem__(self, index: slice | Tensor) -> TopKLogprobs:
        return TopKLogprobs(*(tensor[index] for tensor in self.tensors()))

    def split(self, sizes: Sequence[int]) -> list[TopKLogprobs]:
        """Split along the first axis into parts of `sizes` tokens."""
        return [
            TopKLogprobs(*parts)
            for parts in zip(*(tensor.split(list(sizes)) for tensor in self.tensors()), strict=True)
        ]

    def over_vocabulary(self, log_s_NV: Tensor) -> Tensor:
        """Return the distribution `[N, V]` that has these log-probabilities and a student's proportions elsewhere.

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
    """Number of tokens at the end that are scored: at least 1, with at least one token before them."""


@dataclass(frozen=True)
class SourceInfo:
    """What a log-probability source reports about itself."""

    fingerprint: str
    """Identifies its weights."""
    ends: frozenset[int]
    """The token ids that end a completion."""
    num_parameters: int
    """0 when it is unknown."""


class LogprobSource(ABC):
    """A teacher that gives top-k log-probabilities and answers instead of hidden states and a head.

    It reads the student's tokens.
    """

    name: str
    """Its name, unless its `Teacher` has another one."""

    @property
    def is_remote(self) -> bool:
        """Whether the model is in another process, so that it can be asked while models of this process run."""
        return False

    @property
    def model(self) -> PreTrainedModel | None:
        """The model in this process; None when it is in another one."""
        return None

    @property
    def state_keys(self) -> tuple[StateKey, ...]:
        """Where the hidden states in `layers` are captured; empty when there are none."""
        return ()

    @abstractmethod
    def connect(self, student: PreTrainedTokenizerBase) -> None:
        """Check that the source answers and reads the student's tokens; it comes before all other calls.

        Raises:
            TeacherError: it does not.
        """

    def foreign_tokens(self, student: PreTrainedTokenizerBase) -> Mapping[int, str]:
        """Return the student's added tokens, by id, that the source reads as other tokens, as far as it is known."""
        return {}

    @abstractmethod
    def info(self) -> SourceInfo:
        """Return what the source reported when it was connected."""

    def num_parameters(self) -> int:
        """Return the number of parameters of a forward; 0 when it is unknown."""
        return self.info().num_parameters

    @abstractmethod
    def score(self, sequences: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        """Return the top-k log-probabilities of each sequence's scored tokens."""

    def take_cached_tokens(self) -> int:
        """Return the number of tokens since the last call whose sequences did not have to be scored again."""
        return 0

    @abstractmethod
    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Collection[int] = ()) -> list[Answer]:
        """Answer prompts of token ids greedily.

        Args:
            ends: Tokens that end an answer, beside those of its model.
        """


def answered_everywhere(ask: Callable[[], T]) -> T:
    """Return what a source says to this process, once it has answered every process.

    Every process calls it: one whose source answers would otherwise wait for those that go on without the source.

    Args:
        ask: Calls the source, and does nothing that waits for other processes.

    Raises:
        TeacherDown: on every process, `ask` raised it on one of them.
    """
    answer: T | None = None
    error: TeacherDown | None = None
    try:
        answer = ask()
    except TeacherDown as caught:
        error = caught
    reasons: list[str] = gather_object([] if error is None else [str(error)])
    if reasons:
        raise error or TeacherDown(reasons[0])
    return cast(T, answer)


def answer_of(model: object, ask: Callable[[], T]) -> T:
    """Return what a model says to this process; of a source, once it has answered every process.

    Args:
        model: The model that `ask` asks, the same on every process.
        ask: As of `answered_everywhere`.
    """
    return answered_everywhere(ask) if isinstance(model, LogprobSource) else ask()
