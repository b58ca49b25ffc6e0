"""A model is refused by name if it is not read as it is, has values that are not finite, or its texts don't fit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    ModernBertDecoderConfig,
    PreTrainedModel,
)

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.errors import ModelError, TeacherError
from rld.models.self_check import context_length, require_sound_model
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer

SMALL: dict[str, Any] = {
    "vocab_size": 15,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}


def of_type(model_type: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    if model_type == "modernbert-decoder":
        config: Any = ModernBertDecoderConfig(**SMALL, cls_token_id=0, sep_token_id=0, **changes)
    elif model_type == "gpt2":
        config = GPT2Config(vocab_size=15, n_embd=32, n_layer=1, n_head=4, eos_token_id=1, bos_token_id=1, **changes)
    else:
        config = LlamaConfig(**SMALL | changes)
    return AutoModelForCausalLM.from_config(config)


def trainer(folder: Any, student: Any, *teachers: Any, rows: Any = None, **options: Any) -> RLDTrainer:
    return RLDTrainer(
        student,
        tiny.letters,
        args=RLDConfig(**tiny.options(folder, max_steps=1, gate="off", **options)),
        train_dataset=tiny.rows() if rows is None else rows,
        processing_class=tiny.tokenizer(),
        teachers=teachers,
        controller=FixedController(),
    )


def teacher(model: Any, **options: Any) -> Teacher:
    return Teacher(model, "odd", tokenizer=tiny.tokenizer(), **options)


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_with_a_plain_head_passes_unchanged(model_type, dtype):
    model = of_type(model_type).to(dtype).train()
    state = torch.get_rng_state()
    require_sound_model(model, "the student", ModelError, is_student=True)
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_a_head_with_a_transform_of_its_own_is_refused(tmp_path):
    model = of_type("modernbert-decoder")
    refused = "a model of type 'modernbert-decoder' .* not supported.* .largest difference "
    with pytest.raises(TeacherError, match="teacher 'odd': " + refused):
        trainer(tmp_path, tiny.model(), teacher(model))
    with pytest.raises(TeacherError, match="teacher 'odd': " + refused):
        LocalLogprobs(teacher(model), torch.device("cpu"), 4)
    with pytest.raises(ModelError, match="the student: " + refused):
        trainer(tmp_path, model.requires_grad_(True))


@pytest.mark.parametrize("change", [lambda z: 0.5 * z, lambda z: 2 * (z / 2).tanh(), lambda z: z + 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_multipliers_caps_and_biases_under_other_names_are_refused(change, dtype):
    model: Any = tiny.model().to(dtype)
    plain = model.forward

    def forward(*args: Any, **options: Any) -> Any:
        output = plain(*args, **options)
        output.logits = change(output.logits)
        return output

    require_sound_model(model, "it", ModelError)
    model.forward = forward
    with pytest.raises(ModelError, match="it: a model of type 'llama'"):
        require_sound_model(model, "it", ModelError)


# -- numbers -----------------------------------------------------------------------------------------------------------


def broken(model: PreTrainedModel, name: str, value: float = float("nan"), row: int = 0) -> PreTrainedModel:
    model.get_parameter(name).data[row] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_a_weight_that_is_not_finite_is_named_at_the_start(name, value, tmp_path):
    model = broken(of_type("llama"), name, value)
    with pytest.raises(TeacherError, match=f"teacher 'odd': its weight {name} is not finite"):
        trainer(tmp_path, tiny.model(), teacher(model))
    with pytest.raises(ModelError, match=f"the student: its weight {name} is not finite"):
        trainer(tmp_path, model.requires_grad_(True))


@pytest.mark.parametrize("align", [None, "likelihood"])
def test_outputs_that_are_not_finite_are_told_before_the_update(align, tmp_path):
    """A row of an embedding that the check did not read."""
    made = trainer(tmp_path, tiny.model(), teacher(of_type("llama"), align=align))
    broken(made.teachers[0].load(), "model.embed_tokens.weight", row=slice(5, 15))
    before = [weight.detach().clone() for weight in made.model.parameters()]
    with pytest.raises(TeacherError, match=r"'odd': its outputs .* its weight model.embed_tokens.weight is not finite"):
        made.train()
    assert all(map(torch.equal, before, made.model.parameters()))


def test_another_model_in_a_teachers_place_is_checked_too(tmp_path):
    made = trainer(tmp_path, tiny.model(), teacher(of_type("llama")))
    with pytest.raises(TeacherError, match=r"'odd': its weight model.norm.weight is not finite"):
        made.ensemble.swap(0, broken(of_type("llama"), "model.norm.weight"), tiny.tokenizer())


# -- tokens and contexts -----------------------------------------------------------------------------------------------


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(tmp_path):
    with pytest.raises(ModelError, match="the student: its tokenizer has the token 14, 'j', and its embedding only 12"):
        trainer(tmp_path, tiny.model(vocabulary=12))
    with pytest.raises(TeacherError, match="teacher 'odd': its tokenizer has the token 14, 'j'"):
        trainer(tmp_path, tiny.model(), teacher(tiny.model(vocabulary=12), align="vocabulary"))


LONG = Dataset.from_dict({"prompt": ["ab=", "abcdefghij" * 3 + "="] * 8})
"""Prompts of 3 and of 31 tokens; a completion has up to 6."""


@pytest.mark.parametrize(
    "student", [of_type("gpt2", n_positions=36), of_type("llama", max_position_embeddings=36)], ids=["gpt2", "llama"]
)
def test_a_context_that_the_longest_prompt_exceeds_is_refused_at_the_start(student, tmp_path):
    message = (
        "the student reads at most 36 tokens, and the longest prompt .31 tokens. with a completion of up to 6 has 37"
    )
    with pytest.raises(ModelError, match=message):
        trainer(tmp_path, student, rows=LONG)
    trainer(tmp_path, student, rows=LONG, max_completion_length=5).train()


def test_prompts_that_are_drawn_later_are_measured_before_they_are_read(tmp_path):
    student = of_type("gpt2", n_positions=36)
    made = trainer(tmp_path, student, rows=LONG.to_iterable_dataset())
    with pytest.raises(ModelError, match="the student reads at most 36 tokens"):
        made.train()


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("as_source", [False, True])
def test_a_teacher_with_a_shorter_context_is_refused(as_source, model_type, tmp_path):
    short = of_type(model_type, **{"n_positions" if model_type == "gpt2" else "max_position_embeddings": 32})
    odd = teacher(short)
    if as_source:
        odd = Teacher(LocalLogprobs(odd, torch.device("cpu"), 4), "odd")
    made = trainer(tmp_path, tiny.model(), odd, rows=LONG)
    with pytest.raises(TeacherError, match="teacher 'odd' reads at most 32 tokens"):
        made.train()


def test_windows_do_not_limit_a_context_and_scaled_positions_extend_it():
    assert context_length(of_type("llama", sliding_window=8).config) == 64
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    assert context_length(of_type("llama", rope_parameters=yarn).config) == 256
    assert context_length(GPT2Config(n_embd=8, n_head=1, n_layer=1, n_positions=17)) == 17


# -- the student as its own teacher ------------------------------------------------------------------------------------


def test_the_student_itself_is_refused_as_a_teacher_and_not_frozen(tmp_path):
    student = tiny.model()
    with pytest.raises(TeacherError, match=r"teacher 'odd' has the weights of the student itself.* pass a copy"):
        trainer(tmp_path, student, teacher(student))
    assert all(weight.requires_grad for weight in student.parameters())
    trainer(tmp_path, student, teacher(copy.deepcopy(student))).train()
