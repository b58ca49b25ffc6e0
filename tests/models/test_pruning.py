"""Pruned models against the model that they were cut from, for each type of model that can be pruned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rld.errors import RecipeError
from rld.models.importance import PRUNABLE_TYPES, measure_importance
from rld.models.pruning import Selection, cut_layers, evenly_spaced, most_influential, prune, select
from tests.support import tiny


def made(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    options = {
        "vocab_size": 19,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options | changes)).eval()
    for name, weight in model.named_parameters():  # norms and biases that differ from one channel to the next
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=0.5, std=0.2)
            assert name
    return model


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(1, 19, (5, 9))
    attention = torch.ones_like(ids)
    attention[:2, :4] = 0
    return ids, attention


def logits(model: Any) -> Tensor:
    ids, attention = batch()
    with torch.no_grad():
        values: Tensor = model(input_ids=ids, attention_mask=attention).logits[attention.bool()]
    return values


@pytest.mark.parametrize("kind", PRUNABLE_TYPES)
def test_a_selection_of_everything_gives_the_same_logits_bit_for_bit(kind: str) -> None:
    model = made(kind)
    whole = Selection(range(4), torch.arange(24), [torch.arange(40)] * 4, [torch.arange(4)] * 4)
    assert torch.equal(logits(prune(model, whole)), logits(model))


@pytest.mark.parametrize("kind", PRUNABLE_TYPES)
def test_a_cut_model_computes_what_the_model_computes_with_those_parts_at_zero(kind: str) -> None:
    model = made(kind)
    units, heads = [torch.tensor([0, 3, 39])] * 4, [torch.tensor([1, 2])] * 4
    pruned = prune(model, Selection(range(4), None, units, heads))
    with torch.no_grad():
        for block in model.base_model.layers:
            block.mlp.down_proj.weight[:, [unit for unit in range(40) if unit not in (0, 3, 39)]] = 0
            block.self_attn.o_proj.weight.view(24, 4, 6)[:, [0, 3]] = 0
    torch.testing.assert_close(logits(pruned), logits(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", PRUNABLE_TYPES)
def test_hidden_channels_without_content_can_be_cut(kind: str) -> None:
    """Channels that are zero everywhere change the norms' means alone, by the share of the channels that is left."""
    model = made(kind, rms_norm_eps=1e-12)
    kept = torch.arange(20)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 20:] = 0
        model.lm_head.weight[:, 20:] = 0
        for block in model.base_model.layers:
            block.mlp.down_proj.weight[20:] = 0
            block.self_attn.o_proj.weight[20:] = 0
    pruned = prune(model, Selection(range(4), kept))
    with torch.no_grad():  # a norm over all 24 channels is larger by sqrt(24 / 20) where four of them are zero
        for name, weight in pruned.named_parameters():
            if weight.ndim == 1 and "norm" in name and not name.endswith(("q_norm.weight", "k_norm.weight")):
                offset = 1 if kind.startswith("gemma") else 0
                weight.copy_((weight + offset) * (24 / 20) ** 0.5 - offset)
    torch.testing.assert_close(logits(pruned), logits(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", PRUNABLE_TYPES)
def test_a_dropped_layer_equals_running_without_it(kind: str) -> None:
    model = made(kind)
    pruned = prune(model, Selection([0, 2, 3]))
    assert pruned.config.origin_layers == [0, 2, 3]
    assert prune(pruned, Selection([1])).config.origin_layers == [2]
    assert cut_layers(pruned, model) == [0, 2, 3]
    assert cut_layers(model, pruned) is None
    block = model.base_model.layers[1]
    block.register_forward_hook(
        lambda _module, args, kwargs, _output: args[0] if args else kwargs["hidden_states"], with_kwargs=True
    )
    torch.testing.assert_close(logits(pruned), logits(model))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_a_pruned_model_is_an_ordinary_folder(kind: str, tmp_path: Any) -> None:
    model = made(kind, tie_word_embeddings=kind != "qwen2").to(torch.bfloat16)
    importance = measure_importance(model, [batch()])
    pruned = prune(model, select(model, importance, layers=[0, 3], hidden=16, units=20, heads_per_group=1))
    pruned.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(logits(loaded), logits(pruned))
    tied = loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
    assert tied == model.config.tie_word_embeddings
    loaded.generate(batch()[0], max_new_tokens=2)


def test_importance_is_that_of_the_formulas() -> None:
    model = made("llama")
    ids, attention = batch()
    inputs: dict[str, Tensor] = {}
    model.base_model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda _m, a: inputs.update(units=a[0]))
    model.base_model.layers[2].self_attn.o_proj.register_forward_pre_hook(lambda _m, a: inputs.update(heads=a[0]))
    importance = measure_importance(model, [(ids, attention)])

    def score(activations: Tensor) -> Tensor:
        rows = [activations[row][attention[row].bool()].abs().mean(0) for row in range(len(ids))]
        return torch.stack(rows).square().sum(0).sqrt().double()

    torch.testing.assert_close(importance.units[2], score(inputs["units"]), rtol=1e-5, atol=1e-6)
    heads = score(inputs["heads"]).view(4, 6).norm(dim=1)
    torch.testing.assert_close(importance.heads[2], heads, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=attention, output_hidden_states=True).hidden_states
    cosines = torch.cosine_similarity(states[1], states[2], dim=-1)[attention.bool()]
    torch.testing.assert_close(importance.layers[1], (1 - cosines).mean().double(), rtol=1e-5, atol=1e-6)
    # two batches of the same rows and padding that holds other tokens
    other = torch.where(attention.bool(), ids, 7)
    twice = measure_importance(model, [(ids, attention), (other, attention)])
    torch.testing.assert_close(twice.hidden, importance.hidden * 2**0.5, rtol=1e-5, atol=1e-6)


def test_the_selection_has_the_largest_scores() -> None:
    model = made("llama")
    importance = measure_importance(model, [batch()])
    importance.heads[0][:] = torch.tensor([1.0, 2.0, 4.0, 3.0])
    selection = select(model, importance, units=5, heads_per_group=1)
    assert selection.heads is not None and selection.heads[0].tolist() == [1, 2]
    assert selection.units is not None
    assert set(selection.units[1].tolist()) == set(importance.units[1].argsort(descending=True)[:5].tolist())
    importance.layers[:] = torch.tensor([4.0, 1.0, 2.0, 3.0])
    assert most_influential(importance, 2) == [0, 3]
    assert evenly_spaced(30, 4) == [0, 10, 19, 29]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 25}, "25 hidden channels cannot be kept: the model has 24"),
        ({"heads_per_group": 3}, "3 heads per key-value group cannot be kept: the model has 2"),
        ({"layers": [0, 4]}, "layers [0, 4] cannot be kept: the model has layers 0 to 3"),
        ({"units": 3}, "needs their importance"),
    ],
)
def test_what_cannot_be_cut_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("[", r"\[").replace("]", r"\]")):
        select(made("llama"), None, **options)


def test_a_model_of_another_type_is_refused_by_name() -> None:
    config = AutoConfig.for_model("gpt2", n_layer=1, n_head=2, n_embd=8, vocab_size=8)
    with pytest.raises(RecipeError, match="type 'gpt2' cannot be pruned"):
        select(AutoModelForCausalLM.from_config(config), None, layers=[0])
    assert tiny.model().config.model_type in PRUNABLE_TYPES
