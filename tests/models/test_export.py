"""Models in the files of other runtimes, loaded and run there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rld.errors import ModelError
from rld.models.export import gguf, gguf_tokenizer, verification
from rld.models.export.exported_model import ExportedModel
from rld.models.export.runtime import RuntimeProcess
from rld.models.export.verification import Verification
from rld.models.prompting import PromptEncoder
from rld.models.tokenizers import character_tokenizer
from rld.pipeline.exporting import ExportPlan
from tests.support import real_tokenizers

for _package in ("gguf", "xllamacpp", "onnxruntime_genai", "onnxscript"):
    pytest.importorskip(_package, reason="install the extra `export`")

TOKENIZER = real_tokenizers.byte_level("<|end|>", "<|user|>", eos_token="<|end|>", pad_token="<|end|>")
TOKENIZER.chat_template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
OPTIONS: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}


def llama(**options: Any) -> Any:
    """Build a Llama with more embeddings than tokens, as real ones have."""
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER) + 6, **{**OPTIONS, **ends, **options})).eval()


def qwen2(**options: Any) -> Any:
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(TOKENIZER), **{**OPTIONS, **ends, **options})).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):  # which start as zeros
            torch.nn.init.normal_(weight)
    return model


def qwen3() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(TOKENIZER), head_dim=8, **OPTIONS))


def plan(model: Any, form: str, precision: str, tokenizer: Any = TOKENIZER) -> ExportPlan:
    encoder = PromptEncoder(tokenizer, model_ends=[tokenizer.eos_token_id])
    return ExportPlan(model, encoder, form, precision, [])


@pytest.mark.parametrize(
    ("build", "form", "precision"),
    [
        (llama, "gguf", "f32"),
        (lambda: qwen2(tie_word_embeddings=True), "gguf", "f16"),
        (llama, "gguf", "q4_0"),
        (lambda: llama(tie_word_embeddings=True), "onnx", "f32"),
        (qwen2, "onnx", "int4"),
        (lambda: qwen2(num_attention_heads=8, tie_word_embeddings=True), "onnx", "f32"),
    ],
    ids=[
        "llama-gguf-f32",
        "qwen2-gguf-f16",
        "llama-gguf-q4_0",
        "llama-onnx-f32",
        "qwen2-onnx-int4",
        "small-heads-onnx-f32",
    ],
)
def test_an_exported_model_says_in_its_runtime_what_the_model_says(tmp_path, build, form, precision):
    record = plan(build(), form, precision).export(tmp_path)
    assert record.reads_text
    assert record.tokens >= verification.MIN_TOKENS
    is_whole = precision.startswith("f")
    assert record.agreement > (0.99 if is_whole else 0.3)
    assert record.divergence < (1e-4 if is_whole else 0.5)
    assert all(milliseconds > 0 for milliseconds in record.milliseconds.values())


def test_an_export_with_a_token_for_each_character_reads_texts_as_the_model_does(tmp_path):
    tokenizer = character_tokenizer("abcdefghijlmnoprstuvxyz :=.,\n")
    record = plan(llama(eos_token_id=1, pad_token_id=0), "gguf", "f32", tokenizer).export(tmp_path)
    assert record.reads_text
    assert record.agreement > 0.99
    assert record.divergence < 1e-4


def test_an_export_with_embeddings_that_stay_whole_beside_a_quantised_head_reports_no_error(tmp_path, caplog):
    record = plan(llama(tie_word_embeddings=True), "onnx", "int8").export(tmp_path)
    assert record.divergence < 0.01
    assert [message for message in caplog.messages if "onnxruntime" in message or "quantiz" in message] == []


def test_an_answer_of_an_exported_model_ends_where_the_model_ends_and_is_empty_beyond_its_context(tmp_path):
    model, text = llama(), "What is the sum of 7 and 5?"
    encoder, ids = plan(model, "gguf", "f32").encoder, TOKENIZER(text).input_ids
    gguf.write(model, TOKENIZER, tmp_path, "f32")
    with torch.no_grad():
        expected = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, eos_token_id=None)[0].tolist()
    expected = expected[len(ids) :]
    with RuntimeProcess("gguf", tmp_path, context=64, threads=1) as process:
        exported = ExportedModel(process, encoder, 0)
        assert process.generate(ids, 8, []) == expected
        assert exported.generate([ids], 8, ends=expected[2:3])[0].is_complete
        assert not exported.generate([ids * 9], 8)[0].is_complete
        with pytest.raises(ModelError, match="refuses"):
            process.generate(ids * 60, 8, [])  # llama.cpp rounds a context up


def test_an_export_that_is_not_the_model_is_refused(tmp_path, monkeypatch):
    def unordered(model: Any) -> Any:
        return ((name, weight.float().numpy()) for name, weight in model.state_dict().items())

    monkeypatch.setattr(gguf, "_weights", unordered)
    with pytest.raises(ModelError, match=r"the exported model is not the model: .*at least 0.99 with 32 bits"):
        plan(llama(), "gguf", "f32").export(tmp_path)


def test_an_exported_tokenizer_that_spells_otherwise_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(gguf_tokenizer._SPLITS, ("digits", "bytes, words"), "qwen2")
    with pytest.raises(ModelError, match=r"the exported tokenizer spells .* otherwise"):
        plan(llama(), "gguf", "f32").export(tmp_path)


def test_files_that_a_runtime_cannot_load_are_refused(tmp_path):
    (tmp_path / gguf.FILE).write_bytes(b"GGUF and nothing more")
    with pytest.raises(ModelError, match="the runtime"):
        RuntimeProcess("gguf", tmp_path, context=64, threads=1)


@pytest.mark.parametrize(
    ("build", "tokenizer", "form", "precision", "message"),
    [
        (llama, character_tokenizer("abä"), "gguf", "f16", "ASCII characters, .* of 6 whole words; .* onnx"),
        (llama, real_tokenizers.sentencepiece(), "gguf", "f16", "byte-level BPE"),
        (llama, real_tokenizers.byte_level("<|end|>", space=True), "gguf", "f16", "not known to split"),
        (lambda: llama(mlp_bias=True), TOKENIZER, "gguf", "f16", "its mlp_bias is True"),
        (lambda: llama(intermediate_size=80), TOKENIZER, "gguf", "q8_0", "multiples of 32, .* 64 and 80; take f16"),
        (
            lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            TOKENIZER,
            "gguf",
            "f16",
            "its rope_type is 'linear'",
        ),
        (qwen3, TOKENIZER, "onnx", "f32", "its heads have 8 units, .* multiples of 16"),
        (qwen3, TOKENIZER, "gguf", "f16", "its model_type is 'qwen3'"),
        (
            lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            TOKENIZER,
            "onnx",
            "f32",
            "its rope_type is 'linear'",
        ),
    ],
)
def test_what_a_format_does_not_have_is_refused_by_name(
    build: Callable[[], Any], tokenizer: Any, form: str, precision: str, message: str
):
    encoder = PromptEncoder(tokenizer)
    with pytest.raises(ModelError, match=message):
        ExportPlan(build(), encoder, form, precision, []).require_exportable()


@pytest.mark.parametrize(
    ("bits", "agreement", "perplexity", "is_accepted"),
    [
        (16, 0.99, 10.1, True),
        (16, 0.98, 10.0, False),
        (8, 0.93, 10.2, True),
        (8, 0.94, 10.3, False),
        (4, 0.1, 99.0, True),
        (4, 0.1, float("nan"), False),
    ],
)
def test_a_verification_accepts_what_its_bits_explain(bits, agreement, perplexity, is_accepted):
    result = Verification(400, agreement, 0.0, perplexity, 10.0)
    if is_accepted:
        result.require_faithful(bits)
    else:
        with pytest.raises(ModelError):
            result.require_faithful(bits)


def test_an_exported_chat_template_that_makes_another_prompt_is_refused(tmp_path, monkeypatch):
    model = plan(llama(), "gguf", "f32")
    monkeypatch.setattr(RuntimeProcess, "render", lambda self, question: f"### {question}")
    with pytest.raises(ModelError, match="the exported chat template makes '### What is 7"):
        model.export(tmp_path)
