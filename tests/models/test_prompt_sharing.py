"""Completions that share a row have the states, losses and gradients that they would have in rows of their own."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

import tests.support.tiny as tiny
from rld.controllers.baselines import FixedController
from rld.models import prompt_sharing
from rld.models.hidden_states import capture_states
from rld.models.prompt_sharing import PromptSharingLayout
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.trainer.student_forward import RecordingStudent, add_signal_forward

SIZES = {"vocab_size": 15, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # transformers turns positions into angles in single precision


def qwen() -> Any:
    torch.manual_seed(4)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS))


def gpt2() -> Any:
    torch.manual_seed(5)
    return GPT2LMHeadModel(GPT2Config(vocab_size=15, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def batch(num_tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten completions, in no order, of three prompts of 1, 4 and 5 tokens; two are equal, one is masked altogether."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 15, (n,), generator=generator).tolist() for n in (4, 1, 5)]
    rows, lengths = [0, 2, 0, 1, 2, 0, 0, 2, 1, 0], [3, 6, 1, 4, 2, 5, 3, 1, 0, 2]
    ids, attention = [], []
    for b, (p, n) in enumerate(zip(rows, lengths, strict=True)):
        completion = torch.randint(2, 15, (num_tokens,), generator=torch.Generator().manual_seed(b % 6)).tolist()
        left = 5 - len(prompts[p])
        ids.append([0] * left + prompts[p] + completion[:n] + [0] * (num_tokens - n))
        attention.append([0] * left + [1] * (len(prompts[p]) + n) + [0] * (num_tokens - n))
    return torch.tensor(ids), torch.tensor(attention)


def one_by_one(model: Any, ids_BS: Any, attention_BS: Any, num_tokens: int = 6) -> torch.Tensor:
    """The states that predict the completion tokens, each row run alone and unpadded: `[N, H]`."""
    states = []
    for ids, attention in zip(ids_BS, attention_BS.bool(), strict=True):
        out = model.base_model(input_ids=ids[attention][None]).last_hidden_state[0]
        states.append(out[attention[:-num_tokens].sum() - 1 : -1])
    return torch.cat(states)


def states(model: Any, layout: PromptSharingLayout, ids_BS: Any, attention_BS: Any, num_tokens: int = 6) -> Any:
    rows = layout.rows(ids_BS, attention_BS, num_tokens)
    with capture_states(model, {0, 1, "model.layers.0.self_attn.q_proj"}, rows.restore) as seen:
        model.base_model(**rows.inputs, use_cache=False)
    mask = attention_BS[:, -num_tokens:].bool()
    return rows, [seen[key][mask] for key in (2, 0, 1, "model.layers.0.self_attn.q_proj")]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("balance", [0, 10**6], ids=["short rows", "long rows"])
@pytest.mark.parametrize("make", [tiny.model, qwen])
def test_shared_rows_give_the_states_of_rows_of_their_own(make, balance, attention):
    model = make().eval()
    model.set_attn_implementation(attention)
    ids, mask = batch()
    layout = replace(PromptSharingLayout.of(model, "it"), balance=balance)
    assert layout.shared
    rows, packed = states(model, layout, ids, mask)
    apart, padded = states(model, replace(layout, shared=False), ids, mask)
    torch.testing.assert_close(packed[0], one_by_one(model, ids, mask), **CLOSE)
    for one, other in zip(packed, padded, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert rows.num_computed < apart.num_computed


def test_a_prompt_is_computed_once_and_no_padding_where_it_fits():
    ids, mask = batch()
    model, seen = tiny.model().eval(), []
    layout = replace(PromptSharingLayout.of(model, "it"), balance=10**6)
    model.get_input_embeddings().register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    rows, _ = states(model, layout, ids, mask)
    lengths = mask[:, -6:].sum(1)
    needed = (4 + 1 + 5) + (lengths - 1).clamp(min=0).sum().item()
    assert seen[0].numel() == rows.num_computed == needed


def test_a_model_that_counts_neighbours_in_the_row_keeps_rows_of_their_own():
    kinds = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "hidden_size": 32}
    model = GPTNeoForCausalLM(GPTNeoConfig(vocab_size=15, max_position_embeddings=64, window_size=4, **kinds)).eval()
    with pytest.warns(UserWarning, match="a GPTNeoForCausalLM finds a token's neighbours by their places in the row"):
        assert not PromptSharingLayout.of(model, "it").shared


def test_learnt_positions_start_again_behind_each_prompt():
    model = gpt2().eval()
    ids, mask = batch()
    layout = PromptSharingLayout.of(model, "it")
    assert layout.shared
    for chosen in (layout, replace(layout, balance=0)):
        rows = chosen.rows(ids, mask, 6)
        packed = rows.restore(model.base_model(**rows.inputs).last_hidden_state)[mask[:, -6:].bool()]
        torch.testing.assert_close(packed, one_by_one(model, ids, mask), **CLOSE)


def test_sequences_longer_than_an_attention_window_keep_rows_of_their_own():
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, **HEADS, sliding_window=8)).eval()
    ids, mask = batch()
    layout = PromptSharingLayout.of(model, "it")
    _, (last, *_) = states(model, layout, ids, mask)
    torch.testing.assert_close(last, one_by_one(model, ids, mask), **CLOSE)
    short = mask.clone()
    short[:, 8:] = 0
    rows, (last, *_) = states(model, layout, ids, short)
    torch.testing.assert_close(last, one_by_one(model, ids, short), **CLOSE)
    assert rows.inputs["attention_mask"].dim() == 4


def blind() -> Any:
    """A Llama whose backbone looks at no mask."""
    model = tiny.model()
    forward = model.base_model.forward

    def unmasked(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    model.base_model.forward = unmasked
    return model


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=15, hidden_size=16, num_hidden_layers=1, state_size=4))


def flash() -> Any:
    model = tiny.model()
    model.config._attn_implementation = "flash_attention_2"
    return model


@pytest.mark.parametrize(
    ("make", "why"), [(blind, "differ from those"), (mamba, "carries a state"), (flash, "takes no mask of its own")]
)
def test_a_model_that_cannot_read_shared_rows_is_found_out_and_told(make, why):
    with pytest.warns(UserWarning, match=f"teacher 'x': each completion has a row of its own, because .*{why}"):
        layout = PromptSharingLayout.of(make(), "teacher 'x'")
    ids, mask = batch()
    assert layout.rows(ids, mask, 6).inputs["input_ids"].shape == (10, 5 + 6 - 1)


def made(folder: Any, **changes: Any) -> RLDTrainer:
    options = {"beta": 0.1, "teacher_reward": 0.3, "signals": ["policy", "response", "feature"]}
    options |= {"feature": {"kind": "relation", "heads": 2, "layers": "uniform"}, "per_device_train_batch_size": 16}
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear") if changes.pop("lora", False) else None
    tiny.model().save_pretrained(folder / "student")  # TRL loads the reference anew
    return RLDTrainer(
        model=str(folder / "student"),
        reward_funcs=tiny.letters,
        args=RLDConfig(**tiny.rld_options(folder, **options | changes)),
        train_dataset=tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[
            Teacher(tiny.model(seed=1, width=48), "plain", tokenizer=tiny.tokenizer(), verified={"first": (1, 1)}),
            Teacher(qwen(), "aligned", tokenizer=tiny.tokenizer(), align="vocabulary", verified={"second": (1, 1)}),
        ],
        controller=FixedController(policy=0.5),
        peft_config=lora,
    )


def step(trainer: RLDTrainer, rows: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Roll out and score, then loss, gradients and what each model computed."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(0)
    rollout = trainer._generate_and_score_completions(rows)
    loss = trainer._compute_loss(trainer.model, rollout)
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return rollout, loss, gradients, trainer._joint_loss.take_statistics().student_tokens.item()


@pytest.mark.parametrize("changes", [{}, {"lora": True, "activation_checkpointing": True}], ids=["full", "adapter"])
def test_an_update_is_the_same_with_and_without_shared_rows(tmp_path, monkeypatch, changes):
    rows = [row for row in tiny.rows(4) for _ in range(4)]
    together = step(made(tmp_path, **changes), rows)
    monkeypatch.setattr(prompt_sharing, "_unsupported_reason", lambda _model: "a test forbids it")
    with pytest.warns(UserWarning, match="a test forbids it"):
        apart = step(made(tmp_path, **changes), rows)
    mask = apart[0]["completion_mask"].bool()
    for name in ("ref_per_token_logps", "teacher_0_hidden", "teacher_0_layers", "teacher_1_hidden", "teacher_scores"):
        if name in apart[0]:  # TRL keeps no copy of an adapter's base
            one, other = (x[0][name] for x in (together, apart))
            one, other = (x if x.dim() < 3 or x.shape[1] != 2 else x.transpose(1, 2) for x in (one, other))
            one, other = (x.transpose(1, 2) if x.dim() == 4 else x for x in (one, other))
            torch.testing.assert_close(one[mask], other[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1], apart[1], rtol=1e-5, atol=1e-6)
    assert together[2].keys() == apart[2].keys()
    for name, gradient in apart[2].items():
        torch.testing.assert_close(together[2][name], gradient, rtol=1e-4, atol=1e-5)
    assert together[3] < apart[3]


def test_operations_follow_what_is_computed(tmp_path):
    trainer = made(tmp_path, signals=["policy", "response"], beta=0.0)
    seen = {}
    for name, model in {
        "student": trainer.model,
        **{slot.index: slot.model for slot in trainer.ensemble.slots},
    }.items():
        seen[name] = []
        embed = model.get_input_embeddings()
        embed.register_forward_hook(lambda _m, args, _out, name=name: seen[name].append(args[0].numel()))
    rows = [row for row in tiny.rows(4) for _ in range(4)]
    step(trainer, rows)
    for calls in seen.values():
        calls.clear()
    before = trainer.flop_meter.total
    rollout = trainer._generate_and_score_completions(rows)
    generated = rollout["completion_mask"].sum() + rollout["prompt_mask"].sum()
    read_again = rollout["prompt_mask"].sum() - len(rows) - (rollout["prompt_mask"][::4].sum() - 4)
    sizes = [trainer._num_parameters, *(slot.num_parameters for slot in trainer.ensemble.slots)]
    scored = [sum(seen[0]), sum(seen[1])]
    expected = 2 * (sizes[0] * (generated - read_again).item() + sizes[1] * scored[0] + sizes[2] * scored[1])
    assert trainer.flop_meter.total - before == pytest.approx(expected)
    seen["student"].clear()
    trainer._compute_loss(trainer.model, rollout)
    assert seen["student"] == [trainer._joint_loss.take_statistics().student_tokens]
    assert seen["student"][0] < generated


def test_a_small_vocabulary_and_a_mixture_of_experts_share_rows_too():
    sizes = SIZES | HEADS | {"vocab_size": 7}
    experts = MixtralConfig(**sizes, num_local_experts=4, router_aux_loss_coef=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (Qwen2ForCausalLM(Qwen2Config(**sizes)), MixtralForCausalLM(experts)):
            assert PromptSharingLayout.of(model, "teacher 'x'").shared


def test_operations_of_a_student_whose_rows_are_left_alone_are_counted():
    """A balancing loss needs the routers of all tokens."""
    student = MixtralForCausalLM(MixtralConfig(**SIZES, **HEADS, num_local_experts=4, output_router_logits=True))
    add_fused_lm_head(student)
    add_signal_forward(student)
    ids, attention = batch()
    recorded = RecordingStudent(student, 6)
    recorded(input_ids=ids, attention_mask=attention, labels=ids, fused_lm_head=True)
    assert recorded.num_computed == ids.numel()
