"""Rows that hold several documents, which a model keeps apart by positions that start again with each document.

Without an attention mask and a cache, transformers lets a token see its own document alone, where attention is computed
by `sdpa`, `eager` or `flex_attention`. A model that carries a state from token to token can't be told to forget it.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rld.models.self_check import evaluating

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Largest difference of states, relative to their spread; a GPU may compute float32 in TF32."""

_HALF_PRECISION_TOLERANCE = 0.1

_NUM_TOKENS = 4
"""Tokens of each document that is read to compare."""


@torch.no_grad()
def reason_against_packing(model: PreTrainedModel) -> str | None:
    """Return why a model can't keep the documents of a row apart; None if it can.

    It reads two short documents in one row, twice with another first one, and the second one alone.
    """
    if "position_ids" not in inspect.signature(type(model.base_model).forward).parameters:
        return f"a {type(model).__name__} takes no position_ids"
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    first_1S, second_1S = (torch.randint(vocabulary, (1, _NUM_TOKENS), generator=generator) for _ in range(2))
    try:
        with evaluating(model), torch.autocast(model.device.type, enabled=False):
            alone, *packed = (
                _last_states(model, ids)
                for ids in ([second_1S], [first_1S, second_1S], [(first_1S + 1) % vocabulary, second_1S])
            )
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        return f"it can't read a row of two documents: {str(error).strip().splitlines()[0]}"
    tolerance = _TOLERANCE.get(alone.dtype, _HALF_PRECISION_TOLERANCE) * (alone - alone.mean(0)).double().norm()
    if any(bool((states - alone).double().norm() > tolerance) for states in packed):
        return "a document's states depend on the document in front of it"
    return None


def _last_states(model: PreTrainedModel, documents: list[Tensor]) -> Tensor:
    """Return the states of the last document of a row, `[S, H]`."""
    ids_1L = torch.cat(documents, dim=1).to(model.device)
    positions_1L = torch.cat([torch.arange(ids.shape[1])[None] for ids in documents], dim=1).to(model.device)
    states: Tensor = model.base_model(input_ids=ids_1L, position_ids=positions_1L, use_cache=False).last_hidden_state
    return states[0, -documents[-1].shape[1] :]
