"""Top-k log-probabilities of a model in this process: what a server answers with, and what a cache is filled from.

Shapes: B sequences, S tokens of the longest, N scored tokens, H width, L captured states.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import TeacherError
from rld.models import generation
from rld.models.heads import LMHead
from rld.models.hidden_states import StateKey, capture_states, depth, stack_states
from rld.models.logprob_source import LogprobSource, ScoredSequence, SourceInfo, TopKLogprobs
from rld.models.self_check import context_length, require_context, require_sound_model
from rld.models.tokenizer_profile import TokenizerProfile
from rld.teachers.teacher import Teacher
from rld.types import Answer
from rld.utils.tensors import pad_right, token_chunks

_MAX_LOGITS = 1 << 23
"""Logits that are computed at a time: 32 MiB of float32."""


class LocalLogprobs(LogprobSource):
    """A teacher of this process, cut to its `top_k` likeliest tokens.

    Args:
        teacher: The teacher, with its tokenizer.
        device: Where it runs.
        top_k: Number of named tokens, 1 to 255.
        batch: Tokens of one forward, padding included.
        state_keys: Where hidden states for the feature signal are captured; see `FeaturePlan`.
    """

    def __init__(
        self,
        teacher: Teacher,
        device: torch.device,
        top_k: int = 64,
        *,
        batch: int = 16_384,
        state_keys: Sequence[StateKey] = (),
    ) -> None:
        assert teacher.tokenizer is not None
        self.teacher, self.device, self.top_k, self.batch = teacher, device, top_k, batch
        self._state_keys = tuple(state_keys)
        self.name, self.tokenizer = str(teacher.name), teacher.tokenizer
        self.profile = TokenizerProfile.of(self.tokenizer)
        model = teacher.load()
        with teacher.running(model.device):
            require_sound_model(model, f"teacher '{self.name}'", TeacherError)
        embeddings: Any = model.get_input_embeddings()
        self.num_tokens: int = min(len(LMHead.of(model).weight), len(embeddings.weight))
        """Number of token ids that it has."""
        self.max_length = context_length(model.config) or 1 << 20
        """Tokens of the longest sequence that the model can read."""
        self._info = SourceInfo(teacher.fingerprint(), frozenset(teacher.ends()), teacher.num_parameters())

    def connect(self, student: PreTrainedTokenizerBase) -> None:
        difference = self.profile.difference(student)
        if difference is not None:
            raise TeacherError(
                f"teacher '{self.name}': its tokenizer differs from the student's: {difference}; use align instead"
            )

    def foreign_tokens(self, student: PreTrainedTokenizerBase) -> Mapping[int, str]:
        return self.profile.foreign_tokens(student)

    def info(self) -> SourceInfo:
        return self._info

    @property
    def model(self) -> PreTrainedModel:
        return self.teacher.load()

    @property
    def state_keys(self) -> tuple[StateKey, ...]:
        return self._state_keys

    @torch.no_grad()
    def score(
        self, sequences: Sequence[ScoredSequence], temperature: float, top_k: int | None = None
    ) -> list[TopKLogprobs]:
        highest = max((max(sequence.ids) for sequence in sequences), default=0)
        if highest >= self.num_tokens:
            raise TeacherError(f"teacher '{self.name}' reads token ids below {self.num_tokens}, not {highest}")
        longest, name = max((len(sequence.ids) for sequence in sequences), default=0), f"teacher '{self.name}'"
        require_context(self.model, longest, name=name, text="a prompt with its completion", kind=TeacherError)
        logprobs: dict[int, TopKLogprobs] = {}
        # The caller's autocast is off, so that the values do not depend on the precision that the caller trains in.
        with self.teacher.running(self.device) as model, torch.autocast(self.device.type, enabled=False):
            head = LMHead.of(model).with_float32_logits()  # a half-precision head would round the logits
            for numbers in _batches([len(sequence.ids) for sequence in sequences], self.batch):
                batch = [sequences[i] for i in numbers]
                targets_N = torch.tensor([i for s in batch for i in s.ids[-s.num_scored :]], device=self.device)
                last_NH, layers_NLH = _states(model, batch, self.state_keys)
                scored = _top_k_logprobs(head, last_NH, targets_N, k=top_k or self.top_k, temperature=temperature)
                parts = replace(scored, layers=layers_NLH).split([s.num_scored for s in batch])
                logprobs |= dict(zip(numbers, parts, strict=True))
        return [logprobs[i] for i in range(len(sequences))]

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Collection[int] = ()) -> list[Answer]:
        with self.teacher.running(self.device) as model:
            return generation.complete(
                model,
                self.tokenizer,
                prompts,
                ends=ends,
                max_new_tokens=max_new_tokens,
                name=f"teacher '{self.name}'",
            )


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of sequences that are run together: of like length, and at least one."""
    numbers: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if numbers and (len(numbers) + 1) * lengths[i] > max_tokens:
            yield numbers
            numbers = []
        numbers.append(i)
    if numbers:
        yield numbers


def _states(
    model: PreTrainedModel, sequences: Sequence[ScoredSequence], state_keys: Sequence[StateKey]
) -> tuple[Tensor, Tensor | None]:
    """Run a model over sequences.

    Returns:
        The last hidden states `[N, H]` at the positions that predict the scored tokens, sequence after sequence, and
        the states at `state_keys` `[N, L, H]`, in bfloat16 on the CPU; None without keys.
    """
    ids_BS, attention_BS = pad_right([sequence.ids for sequence in sequences])
    is_scored_BS = torch.zeros_like(ids_BS, dtype=torch.bool)
    for b, (ids, num_scored) in enumerate(sequences):
        is_scored_BS[b, len(ids) - num_scored - 1 : len(ids) - 1] = True
    device = model.device
    with capture_states(model, state_keys) as states:
        model.base_model(input_ids=ids_BS.to(device), attention_mask=attention_BS.to(device), use_cache=False)
    last_BSH = states[depth(model)]
    is_scored_BS = is_scored_BS.to(last_BSH.device)
    captured = {key: states[key][is_scored_BS.to(states[key].device)].bfloat16() for key in state_keys}
    return last_BSH[is_scored_BS], stack_states(captured, state_keys).cpu() if state_keys else None


def _top_k_logprobs(head: LMHead, hidden_NH: Tensor, targets_N: Tensor, *, k: int, temperature: float) -> TopKLogprobs:
    """Return the top-k log-probabilities of N tokens on the CPU, computed a few tokens at a time."""
    parts, targets_N = [], targets_N.to(hidden_NH.device)
    for chunk in token_chunks(len(hidden_NH), len(head.weight), _MAX_LOGITS):
        log_p_nV = (head.logits(hidden_NH[chunk]) / temperature).log_softmax(-1)
        top_k = TopKLogprobs.of(log_p_nV, targets_N[chunk], k)
        parts.append(TopKLogprobs(*(tensor.cpu() for tensor in top_k.tensors())))
    return TopKLogprobs.concatenated(parts)
