"""A prompt is read once for all its completions, which are those that would be sampled otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import tests.support.tiny as tiny
from rld.models.prefill import SharedPrefill
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer

SIZES: dict[str, Any] = {
    "vocab_size": 15,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}


def qwen() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def sliding() -> Any:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=15, n_embd=16, n_layer=2, n_head=4, n_positions=32))


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=15, hidden_size=16, num_hidden_layers=2, state_size=4))


def prompts() -> dict[str, torch.Tensor]:
    """Three prompts of 6, 3 and 1 tokens, four rows each, not in order."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 4], [0, 0, 0, 6, 7, 4], [0, 0, 0, 0, 0, 4]])
    rows = torch.tensor([0, 1, 0, 2, 0, 1, 2, 2, 1, 0, 1, 2])
    return {"input_ids": ids[rows], "attention_mask": (ids != 0).long()[rows]}


def sampled(model: Any, rows: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    chosen = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(3)
    ids: torch.Tensor = model.generate(**rows, generation_config=GenerationConfig(**(chosen | options)))
    return ids


def read(model: Any) -> list[int]:
    """The number of ids that each later forward of a model reads."""
    sizes: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _m, args, _out: sizes.append(args[0].numel()))
    return sizes


@pytest.mark.parametrize("options", [{}, {"do_sample": False}, {"top_k": 5, "temperature": 0.7, "top_p": 0.9}])
@pytest.mark.parametrize("make", [tiny.model, qwen, sliding, gpt2])
def test_the_same_completions_are_sampled_and_each_prompt_is_read_once(make, options):
    torch.manual_seed(0)
    model, rows = make().eval(), prompts()
    expected = sampled(model, rows, **options)
    shared, sizes = SharedPrefill(model), read(model)
    torch.testing.assert_close(sampled(model, rows, **options), expected, rtol=0, atol=0)
    assert sizes[:2] == [3 * 5, 12], "all but the last token of three prompts, then one token for each row"
    assert shared.take_num_read() == (5 + 2 + 0) + 12


@pytest.mark.parametrize("own", [False, True], ids=["asked for", "the model's own"])
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2}, {"use_cache": False}])
def test_other_ways_to_generate_are_left_alone(options, own):
    model, rows = tiny.model().eval(), prompts()
    if own:
        model.generation_config.update(do_sample=True, **options)
    expected = sampled(model, rows, **({} if own else options))
    shared, sizes = SharedPrefill(model), read(model)
    torch.testing.assert_close(sampled(model, rows, **({} if own else options)), expected, rtol=0, atol=0)
    assert sizes[0] >= 12 * 6
    assert shared.take_num_read() == 4 * (6 + 3 + 1)


def test_a_model_s_own_ways_to_sample_do_not_reach_the_reading():
    model, rows = tiny.model().eval(), prompts()
    model.generation_config.update(min_new_tokens=3, repetition_penalty=1.5, exponential_decay_length_penalty=(1, 1.1))
    expected, own = sampled(model, rows), model.generation_config
    SharedPrefill(model)
    sizes = read(model)
    torch.testing.assert_close(sampled(model, rows), expected, rtol=0, atol=0)
    assert sizes[:2] == [3 * 5, 12]
    assert model.generation_config is own


def test_tokens_that_an_adapter_puts_in_front_are_left_alone():
    adapter = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model, rows = get_peft_model(tiny.model(), adapter).eval(), prompts()
    expected = sampled(model, rows)
    SharedPrefill(model.get_base_model())
    torch.testing.assert_close(sampled(model, rows), expected, rtol=0, atol=0)


def test_a_state_that_is_no_cache_of_keys_is_left_alone():
    torch.manual_seed(0)
    model, rows = mamba().eval(), {"input_ids": torch.tensor([[5, 6, 4]] * 4)}
    rows["attention_mask"] = torch.ones_like(rows["input_ids"])
    expected = sampled(model, rows)
    SharedPrefill(model)
    sizes = read(model)
    torch.testing.assert_close(sampled(model, rows), expected, rtol=0, atol=0)
    assert sizes[0] == 12


def test_prompts_that_are_all_different_are_read_as_ever():
    model = tiny.model().eval()
    SharedPrefill(model)
    sizes = read(model)
    sampled(model, {name: rows[[0, 1, 3]] for name, rows in prompts().items()})
    assert sizes[0] == 3 * 6


@pytest.mark.parametrize("lora", [False, True])
def test_the_trainer_reads_prompts_once(tmp_path, lora):
    adapter = LoraConfig(target_modules=["q_proj"]) if lora else None
    options = {"max_steps": 1, "num_generations": 8}
    trainer = RLDTrainer(
        tiny.model(),
        tiny.letters,
        RLDConfig(**tiny.rld_options(tmp_path, **options)),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        peft_config=adapter,
    )
    sizes = read(trainer._student)
    trainer.train()
    assert sizes[:2] == [2, 8], "eight completions of one prompt of three tokens"
