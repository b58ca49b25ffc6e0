"""The scores of labels, each computed by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rld.models.prompting import PromptEncoder


def label_scores(model: Any, encoder: PromptEncoder, prompt: str, words: list[str], with_end: bool = False) -> Tensor:
    """The log-probability of the words of each label behind a prompt, each read by itself in float64: `[L]`."""
    scores = []
    for text in words:
        prompt_ids, ids = encoder.encode_with(prompt, text)
        ids = [*ids, *([encoder.tokenizer.eos_token_id] if with_end else [])]
        log_p_TV = model(torch.tensor([[*prompt_ids, *ids]])).logits[0].double().log_softmax(-1)
        places = range(len(prompt_ids) - 1, len(prompt_ids) - 1 + len(ids))
        scores.append(sum(log_p_TV[place, token] for place, token in zip(places, ids, strict=True)))
    return torch.stack(scores)
