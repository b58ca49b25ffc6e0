"""Run a frozen model's backbone in batches that fit into memory, and return its hidden states.

Shapes: B completions, T completion tokens, P prompt tokens, S = P + T, H width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers import PreTrainedModel

from rld.models.hidden_states import StateKey, capture_states, depth, stack_states
from rld.models.prompt_sharing import PromptSharingLayout


class States(NamedTuple):
    """A model's states at the positions that predict the completion tokens."""

    last_BTH: Tensor
    """The last hidden states."""
    mapped_BLTH: Tensor | None
    """The states at the state keys, narrower ones padded with zeros; None without keys."""
    num_computed: int
    """Tokens that went through the model."""


@torch.no_grad()
def hidden_states(
    model: PreTrainedModel,
    ids_BS: Tensor,
    attention_BS: Tensor,
    *,
    num_tokens: int,
    rows_per_forward: int,
    layout: PromptSharingLayout,
    state_keys: Sequence[StateKey] = (),
) -> States:
    """Run a model's backbone over prompts and completions.

    Args:
        model: The model; only its backbone is run.
        ids_BS: Prompt and completion token ids, `S = P + T`.
        attention_BS: 1 for real tokens.
        num_tokens: T, the completion tokens at the end of each row.
        rows_per_forward: Completions per forward, or some more where it would separate those of one prompt.
        layout: How the rows are laid out.
        state_keys: The states that are returned besides the last ones.
    """
    last, mapped, num_computed = [], [], 0
    for piece in layout.batches(ids_BS, num_tokens, rows_per_forward):
        rows = layout.rows(ids_BS[piece], attention_BS[piece], num_tokens)
        num_computed += rows.num_computed
        with capture_states(model, state_keys, rows.restore) as states:
            model.base_model(**rows.inputs, use_cache=False)
        last.append(states[depth(model)])
        if state_keys:
            mapped.append(stack_states(states, state_keys))
    return States(torch.cat(last), torch.cat(mapped) if state_keys else None, num_computed)


def as_many_as_fit(run: Callable[[int], States], rows_per_forward: int) -> tuple[States, int]:
    """Run with so many completions per forward, halved while memory runs out; also return the number that fitted."""
    while True:
        try:
            return run(rows_per_forward), rows_per_forward
        except RuntimeError as error:
            if rows_per_forward == 1 or not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)  # not in the handler, where the error still holds tensors
        rows_per_forward //= 2
