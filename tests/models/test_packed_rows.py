"""Documents that share a row have the states and losses that they have in rows of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

import tests.support.tiny as tiny
from rld.models.packed_rows import reason_against_packing
from rld.trainer.packing import PackedCollator, packed
from rld.trainer.student_forward import RecordingStudent, add_signal_forward
from rld.utils.tensors import pad_prompts_and_completions

SIZES = {"vocab_size": 15, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
START = 1


def _made(kind: str, window: int = 4) -> Any:
    torch.manual_seed(3)
    match kind:
        case "llama":
            return tiny.model()
        case "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS))
        case "gemma3":
            return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **HEADS, head_dim=8, sliding_window=window))
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=15, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1)
    ).eval()


KINDS = ["llama", "qwen2", "gemma3", "gpt2"]


def _documents(seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = [3, 9, 1, 5, 7, 2, 9, 4]
    return [torch.randint(2, 15, (length,), generator=generator).tolist() for length in lengths]


def _alone(model: Any, documents: list[list[int]]) -> torch.Tensor:
    """The summed negative log-probability of documents, each in a forward of its own."""
    total = torch.zeros((), dtype=torch.float64)
    for document in documents:
        log_p = model(torch.tensor([[START, *document]])).logits[0, :-1].double().log_softmax(-1)
        total = total - log_p.gather(1, torch.tensor(document)[:, None]).sum()
    return total


def _rows(documents: list[list[int]]) -> Any:
    data = {
        "input_ids": [[START, *document] for document in documents],
        "labels": [[-100, *document] for document in documents],
    }
    return packed(Dataset.from_dict(data), 12, "test")


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_gradient_of_packed_rows_are_those_of_documents_alone(kind):
    model, documents = _made(kind).double(), _documents()
    rows = _rows(documents)
    assert len(rows) < len(documents)
    inputs = PackedCollator(0)(list(rows))
    labels = inputs.pop("labels")[:, 1:]
    log_p_BTV = model(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
    loss = -log_p_BTV.gather(2, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels < 0, 0.0).sum()
    assert (labels >= 0).sum() == sum(map(len, documents))
    expected = _alone(model, documents)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    names = [name for name, _ in model.named_parameters()]
    gradients = [torch.autograd.grad(total, list(model.parameters())) for total in (loss, expected)]
    for name, one, other in zip(names, *gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_shared_in_distillation_have_the_loss_of_documents_alone_and_hardly_any_padding(kind):
    model, documents = _made(kind, window=64), _documents()
    expected = _alone(model, documents)
    add_fused_lm_head(model)
    add_signal_forward(model)
    ids_BS, attention_BS, mask_BT = pad_prompts_and_completions([([START], document) for document in documents])
    num_tokens = mask_BT.shape[1]
    labels_BS = ids_BS.masked_fill(attention_BS == 0, -100)
    student = RecordingStudent(model, num_tokens)
    inputs = {"input_ids": ids_BS, "attention_mask": attention_BS, "labels": labels_BS, "fused_lm_head": True}
    total = -(student(**inputs).log_probs[:, -num_tokens:] * mask_BT).double().sum()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)
    assert student.num_computed <= sum(len(document) + 1 for document in documents)
    assert student.result.num_padding <= 0.1 * student.num_computed


@pytest.mark.parametrize("kind", KINDS)
def test_these_models_keep_documents_apart(kind):
    assert reason_against_packing(_made(kind)) is None


def test_models_that_carry_a_state_and_those_that_look_over_the_border_do_not(monkeypatch):
    mamba = MambaForCausalLM(MambaConfig(vocab_size=15, hidden_size=32, num_hidden_layers=2, state_size=4))
    assert "takes no position_ids" in str(reason_against_packing(mamba))
    model = tiny.model()
    forward = model.model.forward

    def leaky(position_ids: Any = None, **inputs: Any) -> Any:  # as if no mask were made of the positions
        return forward(position_ids=position_ids, attention_mask=torch.ones_like(position_ids), **inputs)

    leaky.__signature__ = __import__("inspect").signature(type(model.model).forward)
    monkeypatch.setattr(model.model, "forward", leaky)
    assert reason_against_packing(model) == "a document's states depend on the document in front of it"


def test_no_token_of_a_row_that_is_too_long_is_lost():
    rows = _rows([list(range(2, 15)) * 3, [4, 5]])
    labels = [label for row in rows for label in row["labels"] if label >= 0]
    assert sorted(labels) == sorted([*range(2, 15)] * 3 + [4, 5])
