"""Pruning of SmolLM2-135M itself; `RLD_SMOLLM2` names a folder with its weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rld.models.importance import measure_importance
from rld.models.pruning import Selection, prune, select

FOLDER = os.environ.get("RLD_SMOLLM2")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="set RLD_SMOLLM2 to a folder with SmolLM2-135M")


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32").eval()


@pytest.fixture(scope="module")
def ids() -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = (
        "The sun is much larger than the moon, but both look equally large in the sky because the sun is farther away."
    )
    ids: Tensor = tokenizer(text, return_tensors="pt").input_ids
    return ids


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        values: Tensor = model(input_ids=ids, use_cache=False).logits
    return values


def test_all_kept_is_the_same_bit_for_bit(model, ids):
    config, expected = model.config, logits(model, ids)
    width, units, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    layers = range(config.num_hidden_layers)
    kept = Selection(
        layers, torch.arange(width), [torch.arange(units)] * len(layers), [torch.arange(heads)] * len(layers)
    )
    for selection in (kept, Selection(layers)):
        assert torch.equal(logits(prune(model, selection), ids), expected)


@pytest.mark.parametrize("layer", [0, 13, 29])
def test_without_a_layer_it_computes_what_the_model_does_when_that_layer_passes_its_input_on(model, ids, layer):
    pruned = prune(model, Selection([number for number in range(30) if number != layer]))
    assert pruned.config.num_hidden_layers == 29

    def skip(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = model.model.layers[layer].register_forward_hook(skip, with_kwargs=True)
    try:
        expected = logits(model, ids)
    finally:
        handle.remove()
    assert torch.equal(logits(pruned, ids), expected)


def test_units_chosen_by_importance_keep_more_than_units_at_random(model, ids):
    """1280 of 1536 units of each layer, by the loss on the text by which they are chosen."""
    importance = measure_importance(model, [(ids, torch.ones_like(ids))])
    chosen = select(model, importance, units=1280)
    torch.manual_seed(0)
    anywhere = [torch.randperm(1536)[:1280].sort().values for _ in range(30)]
    by_importance, at_random = (prune(model, selection) for selection in (chosen, Selection(range(30), units=anywhere)))

    def loss(other: Any) -> float:
        with torch.no_grad():
            return float(other(input_ids=ids, labels=ids).loss)

    assert abs(loss(by_importance) - loss(model)) < 0.5 < loss(at_random) - loss(model)
