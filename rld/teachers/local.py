"""A model in this process that hands over shortlists: what a server answers with, and what a cache is filled from.

Shapes: B passages, S tokens of the longest, N scored tokens, H width, L taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from rld.models.tokenizers import vocabulary_hash
from rld.teachers.teacher import Teacher
from rld.utils.tensors import token_chunks

_MAX_LOGITS = 1 << 23
"""Logits held at a time: 32 MiB in float32."""


class LocalLogprobs(LogprobSource):
    """A local teacher, cut to its `top_k` likeliest tokens.

    Args:
        teacher: With its tokenizer.
        device: Where it is run.
        top_k: Tokens of a shortlist, 1 to 255.
        batch: Tokens of one forward, padding included.
        taps: Where hidden states are read that shortlists have, for the feature signal; see `matching.Plan`.
    """

    def __init__(
        self,
        teacher: Teacher,
        device: torch.device,
        top_k: int = 64,
        batch: int = 16_384,
        taps: Sequence[StateKey] = (),
    ) -> None:
        assert teacher.tokenizer is not None
        self.teacher, self.device, self.top_k, self.batch, self._taps = teacher, device, top_k, batch, tuple(taps)
        self.name, self.tokenizer = str(teacher.name), teacher.tokenizer
        self.vocabulary = vocabulary_hash(self.tokenizer)
        model = teacher.load()
        embeddings: Any = model.get_input_embeddings()
        self.num_tokens: int = min(len(LMHead.of(model).weight), len(embeddings.weight))
        """Token ids are below it."""
        limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = limit or 1 << 20
        """Tokens that the model can read in one passage."""
        self._about = SourceInfo(teacher.fingerprint(), frozenset(teacher.ends()), teacher.num_parameters())

    def meet(self, student: PreTrainedTokenizerBase) -> None:
        if vocabulary_hash(student) != self.vocabulary:
            raise TeacherError(f"teacher '{self.name}': its tokenizer differs from the student's; use align instead")

    def about(self) -> SourceInfo:
        return self._about

    @property
    def model(self) -> PreTrainedModel:
        return self.teacher.load()

    @property
    def taps(self) -> tuple[StateKey, ...]:
        return self._taps

    @torch.no_grad()
    def score(
        self, passages: Sequence[ScoredSequence], temperature: float, top_k: int | None = None
    ) -> list[TopKLogprobs]:
        highest = max((max(passage.ids) for passage in passages), default=0)
        if highest >= self.num_tokens:
            raise TeacherError(f"teacher '{self.name}' reads token ids below {self.num_tokens}, not {highest}")
        found: dict[int, TopKLogprobs] = {}
        # what is said must not depend on who asks, and with what precision he trains
        with self.teacher.running(self.device) as model, torch.autocast(self.device.type, enabled=False):
            head = LMHead.of(model).in_float32()  # a half-precision head would round the logits
            for chosen in _batches([len(passage.ids) for passage in passages], self.batch):
                asked = [passages[i] for i in chosen]
                targets_N = torch.tensor([i for p in asked for i in p.ids[-p.num_scored :]], device=self.device)
                last_NH, layers_NLH = _states(model, asked, self.taps)
                said = _shortlist(head, last_NH, targets_N, top_k or self.top_k, temperature)
                said = replace(said, layers=layers_NLH)
                found |= dict(zip(chosen, said.split([p.num_scored for p in asked]), strict=True))
        return [found[i] for i in range(len(passages))]

    def answer(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        with self.teacher.running(self.device) as model:
            return generation.complete(model, self.tokenizer, prompts, max_new_tokens=max_new_tokens)


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield the indices of passages that are run together: of like length, and at least one."""
    chosen: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if chosen and (len(chosen) + 1) * lengths[i] > budget:
            yield chosen
            chosen = []
        chosen.append(i)
    if chosen:
        yield chosen


def _states(
    model: PreTrainedModel, passages: Sequence[ScoredSequence], taps: Sequence[StateKey]
) -> tuple[Tensor, Tensor | None]:
    """The last hidden states `[N, H]` at the positions that predict the scored tokens, passage after passage, and, on
    the CPU and in bfloat16, those at the taps `[N, L, H]`, if there are any."""
    longest = max(len(passage.ids) for passage in passages)
    ids_BS = torch.zeros(len(passages), longest, dtype=torch.long)
    reads_BS, scored_BS = torch.zeros_like(ids_BS), torch.zeros_like(ids_BS, dtype=torch.bool)
    for b, passage in enumerate(passages):
        size = len(passage.ids)
        ids_BS[b, :size], reads_BS[b, :size] = torch.tensor(passage.ids), 1  # padded behind: positions stay as they are
        scored_BS[b, size - passage.num_scored - 1 : size - 1] = True
    device = model.device
    with capture_states(model, taps) as states:
        model.base_model(input_ids=ids_BS.to(device), attention_mask=reads_BS.to(device), use_cache=False)
    last_BSH = states[depth(model)]
    scored_BS = scored_BS.to(last_BSH.device)
    scored = {tap: states[tap][scored_BS.to(states[tap].device)].bfloat16() for tap in taps}
    return last_BSH[scored_BS], stack_states(scored, taps).cpu() if taps else None


def _shortlist(head: LMHead, hidden_NH: Tensor, targets_N: Tensor, k: int, temperature: float) -> TopKLogprobs:
    """The shortlists of N tokens, on the CPU, a few tokens at a time."""
    targets_N, parts = targets_N.to(hidden_NH.device), []
    for rows in token_chunks(len(hidden_NH), len(head.weight), _MAX_LOGITS):
        log_p_nV = (head.logits(hidden_NH[rows]) / temperature).log_softmax(-1)
        parts.append(TopKLogprobs(*(part.cpu() for part in TopKLogprobs.of(log_p_nV, targets_N[rows], k).tensors())))
    return TopKLogprobs.concatenated(parts)
