"""Drafts beside completions: a model that reads completions of a prompt reads a draft of it as one more of them.

Shapes: R completions, D drafts, N = R + D rows, S tokens of prompt and completion, T completion tokens, H width, L
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from rld.models.backbone import States
from rld.models.drafts import Pair
from rld.utils.tensors import pad_prompts_and_completions


class BatchWithDrafts(NamedTuple):
    """Completions and drafts in one batch, in which a draft stands behind the completions of its prompt."""

    ids_NS: Tensor
    """Prompts, padded on the left, and completions or drafts, padded on the right; 0 at padding."""
    attention_NS: Tensor
    num_tokens: int
    """Columns of completions and drafts."""
    rows_R: Tensor
    """The row of each completion."""
    rows_D: Tensor
    """The row of each draft."""

    @classmethod
    def of(cls, ids_RS: Tensor, attention_RS: Tensor, num_tokens: int, drafts: Sequence[Pair]) -> Self:
        """Put drafts, at least one, into a batch of completions, of which the last `num_tokens` columns are."""
        ids_DS, attention_DS, mask_DT = pad_prompts_and_completions(drafts)
        device, most = ids_RS.device, max(num_tokens, mask_DT.shape[1])
        longest = max(ids_RS.shape[1] - num_tokens, ids_DS.shape[1] - mask_DT.shape[1])

        def padded(of_completions: Tensor, of_drafts: Tensor) -> Tensor:
            parts = (of_completions, num_tokens), (of_drafts.to(device), mask_DT.shape[1])
            return torch.cat([pad(part, (longest + size - part.shape[1], most - size)) for part, size in parts])

        ids_NS, attention_NS = padded(ids_RS, ids_DS), padded(attention_RS, attention_DS)
        ids_NS = ids_NS * attention_NS
        prompts_NP = ids_NS[:, :longest].tolist()
        behind = {tuple(prompt): row for row, prompt in enumerate(prompts_NP[: len(ids_RS)])}
        places = [
            *range(len(ids_RS)),
            *(behind.get(tuple(prompt), len(ids_RS)) for prompt in prompts_NP[len(ids_RS) :]),
        ]
        order_N = torch.tensor(sorted(range(len(places)), key=places.__getitem__))
        rows_N = order_N.argsort().to(device)
        order_N = order_N.to(device)
        return cls(ids_NS[order_N], attention_NS[order_N], most, rows_N[: len(ids_RS)], rows_N[len(ids_RS) :])

    def apart(self, states: States, num_tokens: int, sizes: Sequence[int]) -> tuple[States, list[Tensor]]:
        """Return the states of the completions, and for each draft the last states that predict its tokens.

        Args:
            states: The states of the batch.
            num_tokens: Columns of completions.
            sizes: The tokens of each draft.
        """
        last_NTH, mapped_NLTH = states.last_BTH, states.mapped_BLTH
        rows_R = self.rows_R.to(last_NTH.device)
        mapped = None if mapped_NLTH is None else mapped_NLTH[rows_R.to(mapped_NLTH.device), :, :num_tokens]
        of_drafts = [last_NTH[row, :size] for row, size in zip(self.rows_D.tolist(), sizes, strict=True)]
        return States(last_NTH[rows_R, :num_tokens], mapped, states.num_computed), of_drafts
