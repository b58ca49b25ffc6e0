"""What a model writes as far as it agrees with a draft, read in one forward instead of one for each token.

A draft is a completion that the model may well write, such as a gold answer. One forward over prompt and draft gives
the logits behind each beginning of the draft, and with them every token that the model chooses up to the first one
that differs. Only what comes behind has to be decoded. So the completion is the one of decoding token by token,
whatever the draft: speculative decoding (Leviathan et al. 2023) of a greedy choice, or of one by draws that are fixed
beforehand. Where logits are equal up to rounding, either way of computing them may choose either token.

Shapes: N prompts, T tokens of the longest draft, n tokens of a chunk, H width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Self, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rld.models.backbone import hidden_states
from rld.models.decoding import require_no_nan
from rld.models.heads import LMHead
from rld.models.prompt_sharing import PromptSharingLayout
from rld.models.sampling import SeededSampling
from rld.utils.tensors import pad_prompts_and_completions, token_chunks

_MAX_LOGITS = 1 << 23
"""Logits that are computed at a time: 32 MiB of float32."""


Pair: TypeAlias = tuple[list[int], list[int]]
"""Token ids of a prompt, and of a draft of its completion, at least one each."""


class ReadDrafts:
    """A model's states at the places of drafts.

    Args:
        model: The model, on its device and in eval mode.
        pairs: The prompts and drafts.
        states: For each draft the last hidden states `[tokens, H]` that predict its tokens.
        num_tokens: Tokens that the model read for the drafts' sake.
        name: The model's name in errors. None: that of its folder or hub id.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Sequence[Pair],
        states: Sequence[Tensor],
        num_tokens: int,
        name: str | None = None,
    ) -> None:
        self._model, self._pairs, self._states, self.num_tokens, self._name = model, pairs, states, num_tokens, name

    @classmethod
    def alone(
        cls, model: PreTrainedModel, pairs: Sequence[Pair], *, batch_size: int = 64, name: str | None = None
    ) -> Self:
        """Read drafts in forwards of their own, of `batch_size` rows each."""
        by_number = dict[int, Tensor]()
        layout = PromptSharingLayout.unshared(model)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))  # for little padding
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            ids_NS, attention_NS, mask_NT = pad_prompts_and_completions([pairs[i] for i in numbers])
            states = hidden_states(
                model,
                ids_NS.to(model.device),
                attention_NS.to(model.device),
                num_tokens=mask_NT.shape[1],
                rows_per_forward=len(numbers),
                layout=layout,
            )
            by_number |= {i: states.last_BTH[row, : len(pairs[i][1])] for row, i in enumerate(numbers)}
        num_tokens = sum(len(prompt) + len(draft) for prompt, draft in pairs)
        return cls(model, pairs, [by_number[i] for i in range(len(pairs))], num_tokens, name)

    @torch.no_grad()
    def agreed(
        self, numbers: Sequence[int], ends: Collection[int], sampling: SeededSampling | None = None
    ) -> list[list[int]]:
        """Return the first tokens of the completions that the model writes.

        Args:
            numbers: The indices of the prompts.
            ends: Tokens that end a completion.
            sampling: How tokens are sampled. None: greedily.

        Returns:
            For each prompt the tokens up to the first one that is not the draft's or that ends the completion, that
            one included; the whole draft where there is no such token.

        Raises:
            NonFiniteError: the model's logits are NaN.
        """
        if not numbers:
            return []
        draws = (
            []
            if sampling is None
            else [
                draw
                for i in numbers
                for draw in itertools.islice(sampling.draws(self._pairs[i][0]), len(self._pairs[i][1]))
            ]
        )
        states_NH = torch.cat([self._states[i] for i in numbers])
        head, parts, has_nan = LMHead.of(self._model), list[Tensor](), None
        for chunk in token_chunks(len(states_NH), len(head.weight), _MAX_LOGITS):
            logits_nV = head.logits(states_NH[chunk]).float()  # the precision in which `generate` chooses
            is_nan = logits_nV.isnan().any()
            has_nan = is_nan if has_nan is None else has_nan | is_nan
            parts.append(logits_nV.argmax(-1) if sampling is None else sampling.tokens(logits_nV, draws[chunk]))
        require_no_nan(self._model, has_nan, self._name)
        drafts = [self._pairs[i][1] for i in numbers]
        choices = torch.cat(parts).cpu().split([len(draft) for draft in drafts])
        return [_until_they_differ(ids_T.tolist(), draft, ends) for ids_T, draft in zip(choices, drafts, strict=True)]


def _until_they_differ(ids: list[int], draft: list[int], ends: Collection[int]) -> list[int]:
    """Return the chosen tokens up to the first one that is not the draft's or ends the completion, that one included.

    What is chosen behind another token than the draft's was chosen from states that do not follow it.
    """
    pairs = enumerate(zip(ids, draft, strict=True))
    size = next((t + 1 for t, (token, drafted) in pairs if token != drafted or token in ends), len(draft))
    return ids[:size]
