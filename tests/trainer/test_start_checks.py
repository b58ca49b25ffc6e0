"""Students that cannot be trained, or not by their own samples, are told before the first update."""

from __future__ import annotations

import warnings

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from rld.errors import ModelError, RecipeError
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support import tiny


def build(model, folder, **changes):
    args = RLDConfig(**tiny.rld_options(folder, **changes))
    return RLDTrainer(model, tiny.letters, args, tiny.rows(), processing_class=tiny.tokenizer())


def gpt2(rate: float) -> GPT2LMHeadModel:
    ids = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
    rates = {"resid_pdrop": rate, "attn_pdrop": rate, "embd_pdrop": rate}
    return GPT2LMHeadModel(GPT2Config(vocab_size=15, n_embd=32, n_layer=1, n_head=4, n_positions=64, **rates, **ids))


def test_a_student_without_trainable_weights_is_refused(tmp_path):
    with pytest.raises(ModelError, match="the student: none of its weights is trainable"):
        build(tiny.model().requires_grad_(False), tmp_path)


def test_dropout_that_samples_do_not_have_is_told(tmp_path):
    llama = tiny.model()
    llama.model.layers[0].self_attn.attention_dropout = 0.2
    for student in (gpt2(0.2), llama):
        with pytest.warns(UserWarning, match="the student has dropout of up to 0.2 in its losses"):
            build(student, tmp_path)
    for student, options in ((gpt2(0.2), {"disable_dropout": True}), (gpt2(0.0), {})):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="the student has dropout")
            build(student, tmp_path, **options)


def test_a_reference_model_that_no_checkpoint_has_is_refused_where_one_is_written(tmp_path):
    follows = {"sync_ref_model": True, "beta": 0.1, "ref_model_sync_steps": 1}
    with pytest.raises(RecipeError, match="sync_ref_model: no checkpoint has the reference model"):
        build(tiny.model(), tmp_path, save_strategy="steps", **follows)
    tiny.model().save_pretrained(tmp_path / "student")  # from which TRL loads the reference
    build(LlamaForCausalLM.from_pretrained(tmp_path / "student"), tmp_path, save_strategy="no", **follows)
