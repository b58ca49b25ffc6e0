"""Time and memory on stated GPUs: by hand, against what PyTorch saves, and in the page and the command."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from rld.cli import main
from rld.errors import UsageError
from rld.losses.logit_memory import WORKING_BYTES
from rld.recipe import registry
from rld.recipe.demand import state_bytes
from rld.recipe.hardware import CARDS, SAMPLING_SHARE, TRAINING_SHARE, Card, Cards, Demand, Estimate, estimate
from rld.recipe.prices import Prices
from rld.recipe.reading import read_recipe
from rld.recipe.shapes import Shape
from rld.reporting import overview
from tests import scaling_page
from tests.scaling_page import PAGE, page


def test_the_page_has_the_tables_of_the_estimate():
    assert PAGE.read_text() == page(PAGE.read_text()), "write them anew with: python -m tests.scaling_page"


def test_the_page_has_models_of_their_names():
    sizes = {name: scaling_page.cost(name, (), 1).parameters / 1e9 for name in scaling_page.MODELS}
    assert sizes == pytest.approx({"1B": 1.24, "8B": 8.03, "32B": 32.8, "70B": 70.6}, rel=0.01)  # of their model cards


def test_time_and_memory_follow_from_operations_and_bytes():
    demand = Demand(16e9, 20e9, 80e9, cache_bytes=8e9, passes=100, pass_bytes=2e9, read_bytes=40e9)
    bound = estimate({"student": 10**18, "generation": 10**12, "gate": 0}, demand, Cards("H100", 8))
    card = CARDS["H100"]
    reading = (100 * 2e9 + 40e9 / 8) / (card.bandwidth * SAMPLING_SHARE)
    assert bound.seconds == pytest.approx(
        {"student": 10**18 / (8 * card.flops * TRAINING_SHARE), "generation": reading}
    )
    assert bound.bottleneck == "student"
    at_once = 80e9 / 8 + WORKING_BYTES
    assert (bound.whole_bytes, bound.sharded_bytes) == (36e9 + at_once, 22e9 + at_once)
    longer = estimate({"generation": 10**18}, demand, Cards("H100", 8))
    assert longer.seconds["generation"] > reading, "of very many completions the operations are the bound"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("sizes", [(64, 256, 4, 4), (128, 512, 8, 1), (256, 300, 16, 4)])
def test_activations_are_what_pytorch_saves(kind, sizes):
    """Of a layer and token: differences leave out the embedding, and the weights that autocast keeps."""
    config = AutoConfig.for_model(
        kind,
        **dict(
            zip(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"), sizes, strict=True)
        ),
        head_dim=16,
        vocab_size=50,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    saved = {(layers, tokens): saved_bytes(config, layers, tokens) for layers in (1, 2) for tokens in (16, 48)}
    a_layer = {tokens: saved[2, tokens] - saved[1, tokens] for tokens in (16, 48)}
    shape = Shape.of({**config.to_dict(), "num_hidden_layers": 1})
    assert shape.activation_bytes() == pytest.approx((a_layer[48] - a_layer[16]) / 32, rel=0.1)


def saved_bytes(config, layers, tokens):
    config.num_hidden_layers = layers
    config.layer_types = ["full_attention"] * layers
    model = AutoModelForCausalLM.from_config(config)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    ids = torch.arange(tokens)[None] % 50
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", dtype=torch.bfloat16):
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


def test_an_adapters_student_is_only_read():
    whole, adapter = (type("Stage", (), {"lora": lora}) for lora in (None, {"r": 4}))
    assert (state_bytes(whole, 10), state_bytes(adapter, 10)) == (160, 40)


def test_cards_are_parsed_and_others_refused():
    assert (Cards.parse("h100"), Cards.parse("8xH100")) == (Cards("H100"), Cards("H100", 8))
    for text in ("0xH100", "H101", "8x", "x", ""):
        with pytest.raises(UsageError, match="8xH100"):
            Cards.parse(text)


def test_a_check_shows_time_and_memory_of_the_cards_that_it_is_asked_about(capsys):
    assert main(["check", "quickstart", "--card", "2xA100"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("on 2xA100 at least") == 4
    assert text.count("most for student") == 4
    assert main(["check", "quickstart"]) == 0
    assert "A100" not in capsys.readouterr().out
    assert main(["check", "quickstart", "--card", "H101"]) == 2
    assert "H100" in capsys.readouterr().err


def test_a_check_shows_what_a_machine_with_the_cards_costs(tmp_path, monkeypatch):
    """Of an hour at 3 EUR, in which 500 W are drawn at 2 EUR a kWh."""
    prices = Prices(currency="EUR", machine_per_hour=3, watts=500, per_kilowatt_hour=2)
    monkeypatch.setattr(overview, "estimate", lambda *_: Estimate({"student": 3600.0}, 1.0, 1.0))
    recipe = read_recipe(registry.find_recipe("quickstart"))
    text = io.StringIO()
    Console(file=text, width=120).print(overview.overview(recipe, tmp_path, cards=Cards("A100"), prices=prices))
    assert text.getvalue().count("at least 4 EUR, 0.5 kWh") == 4
    (tmp_path / "prices.yaml").write_text("currency: EUR\nmachine_per_hour: 3\n")
    assert main(["check", "quickstart", "--prices", str(tmp_path / "prices.yaml")]) == 2


def test_here_is_what_this_machine_can_do(monkeypatch, capsys):
    measured = Cards("some cores", measured=Card(1e12, 1e12, 10e9))
    monkeypatch.setattr("rld.recipe.machine.measure_machine", lambda: (measured, False))
    assert main(["check", "quickstart", "--card", "here"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("on some cores") == 4
