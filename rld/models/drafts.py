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


class ReadDrafts:
    """A model's states at the places of drafts.

    Args:
        model: The model, on its device and in eval mode.
        prompts: Token ids of each prompt, at least one.
        drafts: Token ids of each draft, at least one.
        batch_size: Rows per forward.
        name: The model's name in errors. None: that of its folder or hub id.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[list[int]],
        drafts: Sequence[list[int]],
        *,
        batch_size: int = 64,
        name: str | None = None,
    ) -> None:
        self._model, self._prompts, self._drafts, self._name = model, prompts, drafts, name
        self._states: dict[int, Tensor] = {}
        """For each draft the states `[tokens, H]` that predict its tokens."""
        layout = PromptSharingLayout.unshared(model)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(drafts[i]))  # for little padding
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            ids_NS, attention_NS, mask_NT = pad_prompts_and_completions([(prompts[i], drafts[i]) for i in numbers])
            states = hidden_states(
                model,
                ids_NS.to(model.device),
                attention_NS.to(model.device),
                num_tokens=mask_NT.shape[1],
                rows_per_forward=len(numbers),
                layout=layout,
            )
            self._states |= {i: states.last_BTH[row, : len(drafts[i])] for row, i in enumerate(numbers)}

    @property
    def num_tokens(self) -> int:
        """Tokens that the model read."""
        return sum(map(len, self._prompts)) + sum(map(len, self._drafts))

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
                for draw in itertools.islice(sampling.draws(self._prompts[i]), len(self._drafts[i]))
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
        drafts = [self._drafts[i] for i in numbers]
        choices = torch.cat(parts).cpu().split([len(draft) for draft in drafts])
        return [_until_they_differ(ids_T.tolist(), draft, ends) for ids_T, draft in zip(choices, drafts, strict=True)]


def _until_they_differ(chosen: list[int], draft: list[int], ends: Collection[int]) -> list[int]:
    """Return the chosen tokens up to the first one that is not the draft's or ends the completion, that one included.

    What is chosen behind another token than the draft's was chosen from states that do not follow it.
    """
    pairs = enumerate(zip(chosen, draft, strict=True))
    size = next((t + 1 for t, (token, drafted) in pairs if token != drafted or token in ends), len(draft))
    return chosen[:size]
