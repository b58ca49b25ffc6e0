"""Students that cannot be trained, or not by their own samples, are told before the first update."""

from __future__ import annotations

import warnings

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from rld.controllers.baselines import FixedController
from rld.errors import ModelError, RecipeError
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support import tiny


def build(model, folder, *, teachers=(), controller=None, **changes):
    args, more = RLDConfig(**tiny.rld_options(folder, **changes)), {"teachers": teachers, "controller": controller}
    return RLDTrainer(model, tiny.letters, args, tiny.rows(), processing_class=tiny.tokenizer(), **more)


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


@pytest.mark.parametrize(
    ("changes", "shares", "is_told"),
    [({}, {}, True), ({}, {"a": 1.0, "b": 0.0}, False), ({"verified": {"first": (3, 4)}}, {}, False)],
)
def test_teachers_that_share_equally_and_that_nobody_has_verified_are_told(tmp_path, changes, shares, is_told):
    teachers = [Teacher(tiny.model(i), name, tokenizer=tiny.tokenizer(), **changes) for i, name in enumerate("ab", 1)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build(tiny.model(), tmp_path, teachers=teachers, controller=FixedController(teachers=shares))
    texts = [str(warning.message) for warning in caught if "nothing tells on which skills" in str(warning.message)]
    assert len(texts) == is_told
    assert all("teachers ['a', 'b']" in text for text in texts)


def test_a_reference_model_that_no_checkpoint_has_is_refused_where_one_is_written(tmp_path):
    follows = {"sync_ref_model": True, "beta": 0.1, "ref_model_sync_steps": 1}
    with pytest.raises(RecipeError, match="sync_ref_model: no checkpoint has the reference model"):
        build(tiny.model(), tmp_path, save_strategy="steps", **follows)
    tiny.model().save_pretrained(tmp_path / "student")  # from which TRL loads the reference
    build(LlamaForCausalLM.from_pretrained(tmp_path / "student"), tmp_path, save_strategy="no", **follows)
