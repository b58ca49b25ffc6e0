"""An exported model as a source of log-probabilities and answers, which evaluators score like any other."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rld.models.export.runtime import NextToken, RuntimeProcess
from rld.models.logprob_source import LogprobSource, ScoredSequence, SourceInfo, TopKLogprobs
from rld.models.prompting import PromptEncoder
from rld.types import Answer


class ExportedModel(LogprobSource):
    """A model in the process of a runtime.

    Args:
        process: The process.
        encoder: Encodes prompts and decodes answers, by the tokenizer of the model before its export.
        num_parameters: Its number of parameters.
    """

    def __init__(self, process: RuntimeProcess, encoder: PromptEncoder, num_parameters: int) -> None:
        self._process, self._encoder = process, encoder
        self._info = SourceInfo("", frozenset(encoder.model_ends), num_parameters)
        self.name = "the exported model"

    def connect(self, student: PreTrainedTokenizerBase) -> None:
        """Do nothing: the tokenizer is the one that was exported."""

    def info(self) -> SourceInfo:
        return self._info

    def score(self, sequences: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        """Return the log-probabilities at temperature 1, the only one that runtimes tell them at."""
        assert temperature == 1.0
        return [top_k(self._process.score(ids, num_scored)) for ids, num_scored in sequences]

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Collection[int] = ()) -> list[Answer]:
        """Answer prompts; one that is longer than the runtime's context with an answer gets an incomplete answer."""
        all_ends = {*ends, *self._info.ends}
        return [self._answer(ids, max_new_tokens, all_ends) for ids in prompts]

    def _answer(self, ids: list[int], max_new_tokens: int, ends: Collection[int]) -> Answer:
        if len(ids) + max_new_tokens > self._process.context:
            return Answer("", is_complete=False)
        tokens = self._process.generate(ids, max_new_tokens, ends)
        is_complete = tokens[-1:] != [] and tokens[-1] in ends
        (text,) = self._encoder.decode([tokens[:-1] if is_complete else tokens])
        return Answer(text, is_complete)


def top_k(tokens: Sequence[NextToken]) -> TopKLogprobs:
    """Return what a runtime says of N tokens as tensors, in float64."""
    ids_NJ, order_NJ = torch.tensor([token.ids for token in tokens]).sort(-1)
    log_p_NJ = torch.tensor([token.logprobs for token in tokens], dtype=torch.float64).gather(-1, order_NJ)
    sampled_N = torch.tensor([token.logprob for token in tokens], dtype=torch.float64)
    return TopKLogprobs(ids_NJ.int(), log_p_NJ, _rest(log_p_NJ), sampled_N)


def _rest(log_p_NJ: Tensor) -> Tensor:
    """Return the log-probability of all tokens but the named ones; of nothing, up to rounding, that of 1e-12."""
    return (1 - log_p_NJ.exp().sum(-1)).clamp(min=1e-12).log()
