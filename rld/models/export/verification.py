"""Whether an exported model says what the model says that it was made of.

Both read the same texts, whose every token follows whatever a model would have chosen (teacher forcing): two greedy
answers go apart for good at the first near-tie, and prove nothing.

Shapes: N tokens, J named tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rld.errors import ModelError
from rld.models.export.exported_model import top_k
from rld.models.export.runtime import RuntimeProcess
from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.models.self_check import evaluating

MIN_TOKENS = 400
"""Tokens that are compared: the standard error of an agreement of 0.94 is then 0.012."""

_MIN_AGREEMENT = {32: 0.99, 16: 0.99, 8: 0.93}
"""The least agreement by the bits of a weight. Fewer bits have none: what they cost is told."""

_MAX_PERPLEXITY = 1.02
"""The most that the perplexity may rise, as a factor, where there is a least agreement."""


class Verification(NamedTuple):
    """How an exported model compares with the model that it was made of.

    Attributes:
        num_tokens: The tokens that were compared.
        agreement: The share of them for which the likeliest token is the same.
        divergence: The mean KL divergence of the exported model from the model, in nats per token; the tokens that the
            runtime does not name are one outcome.
        perplexity: The exported model's.
        model_perplexity: The model's.
    """

    num_tokens: int
    agreement: float
    divergence: float
    perplexity: float
    model_perplexity: float

    def require_faithful(self, bits: int) -> None:
        """Check that the two models agree as far as weights of so many bits let them.

        Raises:
            ModelError: they do not.
        """
        least, most = (_MIN_AGREEMENT[bits], _MAX_PERPLEXITY) if bits in _MIN_AGREEMENT else (0.0, math.inf)
        rise = self.perplexity / self.model_perplexity
        if not math.isfinite(rise):
            raise ModelError("the exported model is not the model: its log-probabilities are not finite")
        if self.agreement < least or rise > most:
            raise ModelError(
                f"the exported model is not the model: on {self.num_tokens} tokens its likeliest token is the same for "
                f"{self.agreement:.3f} (at least {least} with {bits} bits), and its perplexity is "
                f"{self.perplexity:.4g} instead of {self.model_perplexity:.4g} (at most {_MAX_PERPLEXITY - 1:.0%} more)"
            )


def verify(model: PreTrainedModel, process: RuntimeProcess, sequences: Sequence[ScoredSequence]) -> Verification:
    """Compare a model with its export on the scored tokens of sequences."""
    matches, divergence, nats, model_nats = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for ids, num_scored in sequences:
        log_p_NV, following_N = _log_probabilities(model, ids)[-num_scored - 1 : -1], torch.tensor(ids[-num_scored:])
        tokens = process.score(ids, num_scored)
        exported, best_N = top_k(tokens), torch.tensor([token.ids[0] for token in tokens])
        matches.append((best_N == log_p_NV.argmax(-1)).double())
        divergence.append(_divergence(log_p_NV, exported))
        nats.append(-exported.sampled)
        model_nats.append(-log_p_NV.gather(-1, following_N[:, None])[:, 0])
    return Verification(
        num_tokens=sum(map(len, nats)),
        agreement=float(torch.cat(matches).mean()),
        divergence=max(0.0, float(torch.cat(divergence).mean())),
        perplexity=float(torch.cat(nats).mean().exp()),
        model_perplexity=float(torch.cat(model_nats).mean().exp()),
    )


@torch.no_grad()
def _log_probabilities(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Return a model's log-probabilities behind each of some tokens, in float64 on the CPU."""
    with evaluating(model):
        logits_NV: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits_NV.cpu().double().log_softmax(-1)


def _divergence(log_p_NV: Tensor, exported: TopKLogprobs) -> Tensor:
    """Return the KL divergence of an exported model from a model for each of N tokens, over the named and the rest."""
    ids_NJ = exported.ids.long()
    log_p_NJ = log_p_NV.gather(-1, ids_NJ)
    rest_N = log_p_NV.exp().scatter(-1, ids_NJ, 0.0).sum(-1)
    named_N = (log_p_NJ.exp() * (log_p_NJ - exported.log_p)).sum(-1)
    divergence_N: Tensor = named_N + torch.special.xlogy(rest_N, rest_N) - rest_N * exported.tail
    return divergence_N
