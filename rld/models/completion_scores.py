"""Log-probabilities that a model gives to completions that it did not write.

Shapes: B rows, S tokens of prompt and completion, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from torch import Tensor
from transformers import PreTrainedModel

from rld.models.backbone import hidden_states
from rld.models.heads import LMHead, log_probabilities
from rld.models.logprob_source import LogprobSource, ScoredSequence
from rld.models.prompt_sharing import PromptSharingLayout
from rld.models.self_check import evaluating
from rld.utils.tensors import pad_prompts_and_completions

Pair: TypeAlias = tuple[list[int], list[int]]
"""Token ids of a prompt and of a completion."""

_MAX_TOKENS = 8192
"""Tokens of a forward, padding included: hidden states of a few hundred megabytes at most."""


def completion_scores(
    model: PreTrainedModel | LogprobSource, rows: Sequence[Pair], *, shares_prompts: bool = True
) -> list[float]:
    """Return the log-probability of each completion behind its prompt, in nats at temperature 1.

    Args:
        model: A model on its device, without PEFT's wrapper, or a log-probability source.
        rows: Prompts and completions. Those of similar length should follow one another, and those of one prompt.
        shares_prompts: Whether several completions have one prompt, which is then read once.
    """
    if isinstance(model, LogprobSource):
        batches = ([ScoredSequence([*prompt, *ids], len(ids)) for prompt, ids in batch] for batch in _batches(rows))
        return [float(scored.sampled.double().sum()) for batch in batches for scored in model.score(batch, 1.0)]
    with evaluating(model):
        layout = PromptSharingLayout.of(model, "the model") if shares_prompts else PromptSharingLayout.unshared(model)
        return [score for batch in _batches(rows) for score in _scores(model, batch, layout).tolist()]


def _batches(rows: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Yield rows that are read at once, in their order."""
    batch: list[Pair] = []
    longest = 0
    for prompt, ids in rows:
        longest = max(longest, len(prompt) + len(ids))
        if batch and (len(batch) + 1) * longest > _MAX_TOKENS:
            yield batch
            batch, longest = [], len(prompt) + len(ids)
        batch.append((prompt, ids))
    if batch:
        yield batch


def _scores(model: PreTrainedModel, rows: Sequence[Pair], layout: PromptSharingLayout) -> Tensor:
    """Return the log-probabilities of one forward's completions, `[B]`."""
    ids_BS, attention_BS, mask_BT = pad_prompts_and_completions(rows)
    num_tokens, head = mask_BT.shape[1], LMHead.of(model)
    states = hidden_states(
        model,
        ids_BS.to(model.device),
        attention_BS.to(model.device),
        num_tokens=num_tokens,
        rows_per_forward=len(rows),
        layout=layout,
    )
    device, target_BT = head.weight.device, ids_BS[:, -num_tokens:]
    log_p_BT = log_probabilities(head, states.last_BTH.to(device), target_BT.to(device), temperature=1.0)
    return log_p_BT.cpu().double().masked_fill(mask_BT == 0, 0.0).sum(1)
