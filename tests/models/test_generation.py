"""Greedy answers and their scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from rld.errors import ModelError, NonFiniteError
from rld.models import generation
from rld.recipe import registry
from tests.support import scoring, tiny
from tests.support.processes import free_port


def exact(completions, answer, entry, **_) -> list[float | None]:
    """The gold answer, or what a reasoning-gym verifier pays in full."""
    credit = registry.load("rewards", "reasoning:exact_credit", Path())
    return list(credit(completions=completions, answer=answer, entry=entry))


def rows(num: int = 7, chat: bool = False) -> list[dict[str, Any]]:
    return [{**row, "prompt": row["prompt"], "entry": ""} for row in tiny.rows(num, chat)]


def generate(*args: Any, **options: Any) -> list[str]:
    return [answer.text for answer in generation.generate(*args, **options)]


def sample(*args: Any, **options: Any) -> list[list[int]]:
    return generation.sample(*args, ends=(), **options)


def alone(model: Any, ids: list[int], num: int) -> list[int]:
    """Decode one prompt token by token, without a cache or padding."""
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + num and (len(ids) == start or ids[-1] != 1):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


def test_answers_are_greedy_whatever_the_padding_and_the_batch():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    mixed = [{**row, "prompt": "ab:" * (i % 3) + row["prompt"]} for i, row in enumerate(rows())]
    wanted = [alone(model, tokenizer(row["prompt"])["input_ids"], 5) for row in mixed]
    wanted_texts = tokenizer.batch_decode(wanted, skip_special_tokens=True)
    assert len(set(wanted_texts)) > 1
    for batch_size in (1, 3, 64):
        assert generate(model, tiny.encoder(), mixed, max_new_tokens=5, batch_size=batch_size) == wanted_texts


def test_what_is_sampled_follows_the_distribution_and_its_own_prompt_alone():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in tiny.rows(5)]
    prompts[2] = prompts[0] + prompts[2]
    state = torch.get_rng_state()
    together = sample(model, tokenizer, prompts, max_new_tokens=4, seed=3)
    assert together == [sample(model, tokenizer, [ids], max_new_tokens=4, seed=3)[0] for ids in prompts]
    assert together == sample(model, tokenizer, prompts, max_new_tokens=4, seed=3, batch_size=2)
    assert together != sample(model, tokenizer, prompts, max_new_tokens=4, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        p = (model(torch.tensor([prompts[0]])).logits[0, -1] / 0.7).softmax(-1)
    drawn = [
        sample(model, tokenizer, [prompts[0]], max_new_tokens=1, seed=seed, temperature=0.7)[0][0]
        for seed in range(400)
    ]
    share = torch.bincount(torch.tensor(drawn), minlength=len(p)) / len(drawn)
    assert 0.2 < p.max() < 0.95
    assert ((share - p).abs() < 4 * (p * (1 - p) / len(drawn)).sqrt() + 1e-3).all()


def test_chats_get_the_template_and_its_answer_prompt():
    as_text = [{**row, "prompt": row["prompt"][0]["content"] + ":="} for row in rows(chat=True)]
    answers = [generate(tiny.model(), tiny.encoder(), r, max_new_tokens=5) for r in (as_text, rows(chat=True))]
    assert answers[0] == answers[1]


def test_the_model_and_the_random_state_are_left_as_they_were():
    model, encoder = tiny.model().train(), tiny.encoder()
    wanted = generate(model, encoder, rows(), max_new_tokens=5)
    own = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=5.0, eos_token_id=1, pad_token_id=0)
    model.generation_config = own
    state = torch.get_rng_state()
    assert generate(model, encoder, rows(), max_new_tokens=5) == wanted
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.generation_config is own
    assert generate(model.eval(), encoder, rows(), max_new_tokens=5) == wanted
    assert not model.training


def test_every_end_token_of_the_model_ends_an_answer():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    before = generate(model, tiny.encoder(), rows(), max_new_tokens=5)
    text = max(before, key=lambda text: len(set(text.replace(" ", ""))))
    end = tokenizer.convert_tokens_to_ids(text.replace(" ", "")[0])
    model.generation_config.eos_token_id = [1, end]
    after = generate(model, tiny.encoder(), rows(), max_new_tokens=5)
    assert any(len(a) < len(b) for a, b in zip(after, before, strict=True))
    assert all(tokenizer.decode(end) not in a.split()[:-1] for a in after)


def test_scores_are_exact_and_per_skill():
    import reasoning_gym

    made = [reasoning_gym.create_dataset("chain_sum", seed=seed, size=1)[0] for seed in (1, 2)]
    entries = [json.dumps({"task": "chain_sum", "config": {}, **item}) for item in made]
    answered = [
        ("text", "abc", "", " abc "),
        ("text", "abc", "", "abcd"),
        ("text", "abc", "", ""),
        ("sum", made[0]["answer"], entries[0], made[0]["answer"]),
        ("sum", made[1]["answer"], entries[1], f"it is {made[1]['answer']}"),
    ]
    labelled = [
        {"prompt": "", "skill": skill, "answer": answer, "entry": entry} for skill, answer, entry, _ in answered
    ]
    assert scoring.shares(labelled, [text for *_, text in answered], exact, tiny.tokenizer()) == {
        "text": 1 / 3,
        "sum": 0.5,
    }


SCRIPT = """
import tests.support.tiny as tiny
from accelerate import PartialState
import tests.support.scoring as scoring
from tests.models.test_generation import exact, generate, rows

PartialState(cpu=True)
texts = generate(tiny.model(), tiny.encoder(), rows(5), max_new_tokens=5, batch_size=2)
print(PartialState().num_processes, texts, scoring.shares(rows(5), texts, exact, tiny.tokenizer()), sep="|", flush=True)
"""


def test_processes_share_the_work_and_agree(tmp_path):
    """Two processes at once with an empty cache: the metric is loaded by both, offline."""
    texts = generate(tiny.model(), tiny.encoder(), rows(5), max_new_tokens=5)
    wanted = f"2|{texts}|{scoring.shares(rows(5), texts, exact, tiny.tokenizer())}"
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "HF_HOME": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **places, "HF_HUB_OFFLINE": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in running] == [wanted, wanted]


def test_the_head_gets_whole_states_while_answering_and_is_left_as_it_was():
    model, seen = tiny.model(), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _head, states, _out: seen.append(states[0].is_contiguous()))
    generate(model, tiny.encoder(), [{"prompt": "ab="}, {"prompt": "abcd="}], max_new_tokens=3)
    assert all(seen)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prompt_beyond_the_context_is_left_without_an_answer_and_told(kind):
    options = {"n_positions" if kind == "gpt2" else "max_position_embeddings": 8, "vocab_size": 15}
    small = {"n_embd": 8, "n_layer": 1, "n_head": 1} if kind == "gpt2" else {"hidden_size": 8, "num_hidden_layers": 1}
    more = {} if kind == "gpt2" else {"num_attention_heads": 1, "intermediate_size": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options, **small, **more, eos_token_id=1))
    rows = [{"prompt": "ab="}, {"prompt": "abcdef="}, {"prompt": "abc="}]
    with pytest.warns(UserWarning, match="teacher 't' leaves 1 of 3 prompts without an answer.*its context of 8"):
        answers = generation.generate(model, tiny.encoder(), rows, max_new_tokens=4, name="teacher 't'")
    assert answers[1] == ("", False)
    assert len(answers) == 3
    with pytest.raises(ModelError, match="reads at most 8 tokens"):
        generation.sample(model, tiny.tokenizer(), [[3] * 7], ends=[1], max_new_tokens=4, seed=0)


def test_a_model_whose_logits_are_nan_is_named_wherever_it_generates():
    model = tiny.model()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    why = r"teacher 't' generates from logits that are NaN: its weight model.layers.0.mlp.up_proj.weight is not finite"
    with pytest.raises(NonFiniteError, match=why):
        generation.generate(model, tiny.encoder(), [{"prompt": "ab="}], max_new_tokens=2, name="teacher 't'")
    with pytest.raises(NonFiniteError, match="generates from logits that are NaN"):
        generation.sample(model, tiny.tokenizer(), [[5, 6]], ends=[1], max_new_tokens=2, seed=0)
