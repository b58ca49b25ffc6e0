"""Rollouts by vLLM: TRL's own code around a small vLLM, with what rld adds to it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rld.errors import ModelError, RecipeError, SystemFailure
from rld.teachers.teacher import Teacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support import tiny, vllm_stub

MODES = ("colocate", "server")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "student"
    tiny.model().save_pretrained(path)
    with monkeypatch.context() as patches:
        patches.setattr(os, "environ", os.environ.copy())
        vllm_stub.install(patches, str(path))
        yield path


def built(folder: Any, mode: str = "colocate", teachers: Any = (), **changes: Any) -> RLDTrainer:
    options = tiny.rld_options(folder.parent / "out", use_vllm=True, vllm_mode=mode, max_steps=3, **changes)
    return RLDTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        tiny.letters,
        RLDConfig(**options),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=teachers,
    )


def engine(trainer: RLDTrainer) -> vllm_stub.Engine:
    generation: Any = trainer.vllm_generation
    return generation.llm if trainer.vllm_mode == "colocate" else generation.vllm_client


def rollout(trainer: RLDTrainer) -> Any:
    trainer.model.train()
    rows = [row for row in tiny.rows(2) for _ in range(4)]
    return trainer._generate_and_score_completions(rows)


@pytest.mark.parametrize("mode", MODES)
def test_every_update_samples_from_the_students_present_weights(folder, mode):
    """With all signals: learned projections are the student's, and are no weights of vLLM's."""
    trainer = built(
        folder,
        mode,
        teachers=[Teacher(tiny.model(seed=1, width=64), "wide", tokenizer=tiny.tokenizer())],
        signals=["policy", "response", "feature"],
        temperature=0.7,
    )
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 3
    assert engine(trainer).num_syncs == 3
    assert max(log["sampling/sampling_logp_difference/max"] for log in logs) < 1e-4
    assert all(log["tokens/generated"] > 0 for log in logs)
    request = engine(trainer).requests[0]
    assert (request["temperature"], request["max_tokens"], request["stop_token_ids"]) == (0.7, 6, [1])


@pytest.mark.parametrize("mode", MODES)
def test_gold_answers_are_among_the_completions_and_are_not_corrected(folder, mode):
    trainer = built(folder, mode, gold_completions=1, vllm_importance_sampling_mode="token_truncate")
    engine(trainer).sharpness = 1.5
    batch = rollout(trainer)
    ids, mask, ratio = batch["completion_ids"], batch["completion_mask"].bool(), batch["importance_sampling_ratio"]
    for start, row in ((0, tiny.rows(2)[0]), (4, tiny.rows(2)[1])):
        gold = [*tiny.tokenizer()(row["answer"])["input_ids"], 1]
        assert ids[start][mask[start]].tolist() == gold
        assert torch.equal(ratio[start][mask[start]], torch.ones(len(gold)))
        for i in range(start + 1, start + 4):
            assert (ratio[i][mask[i]] - 1).abs().max() > 1e-3
    sampled = batch["sampling_per_token_logps"][1][mask[1]]
    expected = (batch["old_per_token_logps"][1][mask[1]] - sampled).exp().clamp(max=3.0)
    assert torch.allclose(ratio[1][mask[1]], expected)
    if mode == "server":
        (request,) = engine(trainer).requests
        assert (request["n"], len(request["prompts"])) == (4, 2)


def test_the_loss_with_gold_answers_is_finite_and_trains(folder):
    teacher = Teacher(tiny.model(seed=1), "t", tokenizer=tiny.tokenizer())
    trainer = built(folder, teachers=[teacher], gold_completions=2, gold_weight=0.5)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 3
    assert all(torch.tensor(losses).isfinite())


def test_samples_follow_the_seed_of_the_run(folder):
    """vLLM is built with a seed of its own, and seeds the process with it."""
    first, again, other = (rollout(built(folder, seed=seed))["completion_ids"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize("failure", [Exception("Request failed: 500, out of memory"), OSError("refused")])
def test_a_server_that_fails_is_named(folder, failure):
    trainer = built(folder, "server", vllm_server_port=8123)
    engine(trainer).failure = failure  # type: ignore[attr-defined]
    with pytest.raises(SystemFailure, match=r"the server at 0\.0\.0\.0:8123 failed in a rollout .*(500|refused)"):
        rollout(trainer)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("refill", {"refill": 2}),
        ("use_vllm", {"gold_completions": 4, "signals": ["response"]}),
        ("use_vllm", {"labels": {"a": ["x", "y"]}, "num_generations": 2}),
        *(("generation_kwargs", {"generation_kwargs": {key: 1}}) for key in ("n", "seed", "logprobs", "max_tokens")),
        ("vllm_max_model_length", {"vllm_max_model_length": 6}),
        ("vllm_importance_sampling_mode", {"loss_type": "vespo"}),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(tmp_path, name, changes):
    with pytest.raises(RecipeError, match=f"^{name}: "):
        RLDConfig(**tiny.rld_options(tmp_path, use_vllm=True, **changes))


def test_what_it_needs_is_checked_before_anything_is_sampled(folder):
    with pytest.raises(ModelError, match=r"vllm_max_model_length is 8, and the longest prompt .* has 9; raise it"):
        built(folder, vllm_max_model_length=8)
    args = RLDConfig(**tiny.rld_options(folder.parent, use_vllm=True))
    with pytest.raises(ModelError, match="loads the student from its folder or hub id"):
        RLDTrainer(tiny.model(), tiny.letters, args, tiny.rows(), processing_class=tiny.tokenizer())


def test_without_vllm_nothing_is_built(tmp_path):
    args = RLDConfig(**tiny.rld_options(tmp_path, use_vllm=True))
    with pytest.raises(RecipeError, match=r"^use_vllm: vLLM is not installed"):
        RLDTrainer(tiny.model(), tiny.letters, args, tiny.rows(), processing_class=tiny.tokenizer())
