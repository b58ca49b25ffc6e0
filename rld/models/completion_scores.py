"""Log-probabilities that a model gives to completions that it did not write.

Shapes: B rows, S tokens of prompt and completion, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rld.models.backbone import hidden_states
from rld.models.heads import LMHead, log_probabilities
from rld.models.logprob_source import LogprobSource, ScoredSequence
from rld.models.prompt_sharing import PromptSharingLayout
from rld.utils.tensors import pad_prompts_and_completions

_ROWS = 64
"""Completions of a forward."""


def completion_scores(
    model: PreTrainedModel | LogprobSource, rows: Sequence[tuple[list[int], list[int]]], name: str = "the model"
) -> list[float]:
    """Return the log-probability of each completion behind its prompt, in nats at temperature 1.

    Args:
        model: A model on its device, without PEFT's wrapper, or a log-probability source.
        rows: Token ids of prompts and completions; those of one prompt should follow one another.
        name: The model's name in warnings.
    """
    if isinstance(model, LogprobSource):
        scored = model.score([ScoredSequence([*prompt, *ids], len(ids)) for prompt, ids in rows], 1.0)
        return [float(one.sampled.sum()) for one in scored]
    was_training = model.training
    model.eval()
    try:
        layout = PromptSharingLayout.of(model, name)
        return [score for scores_B in _batches(model, rows, layout) for score in scores_B.tolist()]
    finally:
        model.train(was_training)


def _batches(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]], layout: PromptSharingLayout
) -> Iterator[Tensor]:
    device = model.device
    for start in range(0, len(rows), _ROWS):
        ids_BS, attention_BS, mask_BT = (
            tensor.to(device) for tensor in pad_prompts_and_completions(rows[start : start + _ROWS])
        )
        size = mask_BT.shape[1]
        last_BTH = hidden_states(
            model, ids_BS, attention_BS, num_tokens=size, rows_per_forward=_ROWS, layout=layout
        ).last_BTH
        log_p_BT = log_probabilities(LMHead.of(model), last_BTH, ids_BS[:, -size:].to(last_BTH.device), temperature=1.0)
        yield torch.where(mask_BT.to(log_p_BT.device) > 0, log_p_BT, 0.0).double().sum(1)
