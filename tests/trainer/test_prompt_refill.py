"""Prompts whose completions all got the same reward are replaced before the update, counted, and told of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from rld.curricula.fixed import Uniform

import tests.support.tiny as tiny
from rld.errors import RecipeError
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.trainer.test_processes import found, launch

LEVELS = {"known": 1, "open": 2}


class Observed(Uniform):
    """Remembers what it is told of."""

    def __init__(self) -> None:
        super().__init__(LEVELS)
        self.seen: dict[str, list[int]] = {skill: [0, 0] for skill in LEVELS}

    def observe(self, task: Any, successes: int, attempts: int) -> None:
        self.seen[task.skill][0] += successes
        self.seen[task.skill][1] += attempts


def rows() -> Dataset:
    tasks = [("known", 0), ("open", 0), ("open", 1)] * 4
    return Dataset.from_dict(
        {
            "prompt": [f"{tiny.WORDS[i % 10]}{tiny.WORDS[(3 * i) % 10]}=" for i in range(len(tasks))],
            "answer": ["a"] * len(tasks),
            "skill": [skill for skill, _ in tasks],
            "level": [level for _, level in tasks],
        }
    )


def solved(completions: list[str], skill: list[str], **_: Any) -> list[float]:
    """Every answer of the known skill is right; of the other, those of an even number of letters."""
    return [float(s == "known" or len(text) % 2 == 0) for text, s in zip(completions, skill, strict=True)]


class Watched(RLDTrainer):
    """Keeps the rewards of each rollout, and counts the tokens that are sampled."""

    def _finish_rollout(self, batch: Any, record: Any) -> None:
        super()._finish_rollout(batch, record)
        self.num_trained += int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
        self.lengths += self._metrics["train"]["completions/mean_length"]
        self.rollouts.append((record.rewards_AR[:, 0].view(-1, record.group_size), [r["skill"] for r in record.rows]))

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._sample(*args, **kwargs)
        self.num_sampled += sum(map(len, result[0]))
        return result


def trainer(folder: Any, refill: int, curriculum: Any = None, **changes: Any) -> Watched:
    made = Watched(
        model=tiny.model(),
        reward_funcs=[solved],
        args=RLDConfig(**tiny.rld_options(folder, per_device_train_batch_size=16, **changes), refill=refill),
        train_dataset=rows(),
        processing_class=tiny.tokenizer(),
        curriculum=curriculum or Observed(),
    )
    made.rollouts, made.lengths, made.num_sampled, made.num_trained = [], [], 0, 0
    return made


def test_prompts_of_equal_rewards_are_replaced_and_all_attempts_counted(tmp_path):
    curriculum = Observed()
    filtered = trainer(tmp_path, 8, curriculum)
    filtered.train()
    totals = filtered.totals
    for rewards, skills in filtered.rollouts:
        assert bool((rewards.amax(1) > rewards.amin(1)).all()), "eight draws are enough here"
        assert set(skills) == {"open"}
    assert totals.groups == 20 and totals.groups_without_difference == 0
    assert totals.groups_replaced["known"] > 5, "a third to a half of all picks"
    successes, attempts = curriculum.seen["known"]
    assert successes == attempts == 4 * totals.groups_replaced["known"]
    assert curriculum.seen["open"][1] == 4 * (20 + totals.groups_replaced["open"])
    assert totals.tokens_generated == filtered.num_sampled
    assert filtered.state.num_input_tokens_seen == filtered.num_trained, "as TRL counts without replacements"
    assert len(filtered.lengths) == len(filtered.rollouts), "TRL's means are of the completions that stay"
    assert filtered.flop_meter.accounts["generation"] > 2 * filtered.num_sampled * filtered._num_parameters
    last = [event for event in filtered.events if event.kind == "prompts replaced"]
    assert [(e.skill, e.about) for e in last] == [(s, f"{totals.groups_replaced[s]} prompts") for s in LEVELS]
    assert filtered.state.log_history[-2]["prompts/replaced"] == sum(totals.groups_replaced.values())


def test_at_most_so_many_times(tmp_path):
    once = trainer(tmp_path, 1, Uniform(LEVELS, weights={"known": 1, "open": 0}), max_steps=2)
    once.train()
    assert once.totals.groups_replaced == {"known": 8, "open": 0}
    assert once.totals.groups_without_difference == 8
    assert once.state.log_history[-2]["prompts/all_the_same"] == 8


def test_without_refill_nothing_is_replaced(tmp_path):
    plain = trainer(tmp_path, 0, max_steps=2)
    plain.train()
    assert plain.totals.groups_replaced == {} and {"known"} < {s for _, skills in plain.rollouts for s in skills}
    assert not any(event.kind == "prompts replaced" for event in plain.events)


def test_a_resumed_training_draws_the_same_replacements(tmp_path):
    whole = trainer(tmp_path / "whole", 3, max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = trainer(tmp_path / "resumed", 3, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert vars(resumed.totals) == vars(whole.totals)
    for one, other in zip(resumed.rollouts, whole.rollouts[2:], strict=True):
        assert torch.equal(one[0], other[0]) and one[1] == other[1]
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_process_and_two_replace_the_same_prompts(tmp_path):
    launch(tmp_path, 1, module="refilled")
    launch(tmp_path, 2, module="refilled")
    (one, *two), states = found(tmp_path, "refilled")
    for weights in two:
        torch.testing.assert_close(weights, one, rtol=1e-4, atol=1e-6)
    assert states[0] == states[1] == states[2]
    assert min(states[0]["replaced"].values()) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curriculum": None}, "curriculum"),
        ({"args": {"log_completions": True}}, "log_completions"),
        ({"args": {"signals": ["response"]}, "teachers": [tiny.model(1)]}, "no policy"),
        ({"args": {"gold_completions": 1}}, "gold_completions"),
        ({"args": {"refill": -1}}, "at least 0"),
    ],
)
def test_what_cannot_be_replaced_is_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=f"refill.*{message}"):
        RLDTrainer(
            model=tiny.model(),
            reward_funcs=[solved],
            args=RLDConfig(**{**tiny.rld_options(tmp_path), "refill": 2, **changes.get("args", {})}),
            train_dataset=rows(),
            processing_class=tiny.tokenizer(),
            curriculum=changes.get("curriculum", Uniform(LEVELS)),
            teachers=changes.get("teachers", ()),
        )
