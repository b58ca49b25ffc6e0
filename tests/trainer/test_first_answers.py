"""Before its first update the student answers rows, which show whether their gold answers are bare results."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import pytest
import torch
from peft import LoraConfig

import tests.support.gold_prompts_one_and_two as runs
import tests.support.tiny as tiny
from rld.models.generation import generate
from rld.trainer import first_answers
from rld.trainer.sharding import whole_state_dict
from rld.utils.flops import forward_flops
from tests.support.processes import run_modules, sharing_environment

SHORT, LONG = "ab", "abcdefghij"
"""What students say; the gold answers of the two skills have 4.5 and 2.5 tokens with their ends on the mean."""

OPTIONS: dict[str, Any] = {
    "reward": runs.begins_well,
    "gold_share": None,
    "max_completion_length": 12,
    "num_rows": 400,
}


def trained(folder: Any, **options: Any) -> runs.Recorded:
    trainer = runs.trainer(folder, **{**OPTIONS, "max_steps": 2, **options})
    trainer.train()
    return trainer


def first_entry(trainer: Any, name: str) -> Any:
    return next(entry for entry in trainer.state.log_history if "gold_share/first" in entry).get(name)


def gold_events(trainer: Any) -> list[tuple[int, str, str]]:
    kinds = ("gold answers bare", "gold answers short")
    return sorted((event.step, event.kind, event.skill) for event in trainer.events if event.kind in kinds)


def num_probed(trainer: Any) -> float:
    """Tokens that the student read and wrote before its first update."""
    return trainer.flop_meter.parts["student"]["probes"] / forward_flops(trainer._num_parameters, 1)


def test_a_student_that_writes_more_learns_no_bare_results_in_its_first_update(tmp_path):
    trainer = trained(tmp_path, says=LONG)
    assert all(not record.gold_groups for record in trainer.records)
    assert [first_entry(trainer, f"gold_share/{skill}") for skill in ("first", "second")] == [0.0, 0.0]
    assert first_entry(trainer, "loss/gold") is None
    assert gold_events(trainer) == [(0, "gold answers bare", "first"), (0, "gold answers bare", "second")]
    assert num_probed(trainer) == 2 * 8 * (3 + 11), "prompts have three tokens, answers an end"


def test_teachers_answers_take_their_place_in_the_first_update(tmp_path):
    trainer = trained(tmp_path, says=LONG, seeds=[runs.FIRST], gold_answers="either", max_steps=1)
    assert trainer.runtime.weights.teacher_answers == {"first", "second"}
    assert first_entry(trainer, "gold_share/first") == 31 / 32
    (record,) = trainer.records
    learnt = [i for i in range(32) if i // 4 in record.gold_groups]
    assert set(learnt) == set(record.answers), "no row's own answer is learnt"


def test_a_student_that_writes_as_little_learns_nearly_all_gold_answers_in_its_first_update(tmp_path):
    trainer = trained(tmp_path, says=SHORT)
    assert first_entry(trainer, "gold_share/first") == 31 / 32
    assert len(trainer.records[0].gold_groups) >= 6, "of eight"
    assert not gold_events(trainer)
    assert num_probed(trainer) == 2 * 8 * (3 + 3)


def never(completions: list[str], **_: Any) -> list[float]:
    """A verifier that accepts nothing."""
    return [0.0] * len(completions)


@pytest.mark.parametrize(("says", "num_rows", "kinds"), [(LONG, 32, ["gold answers short"] * 2), (SHORT, 8, [])])
def test_a_student_that_is_hardly_ever_right_answers_more_rows_if_its_answers_are_long(tmp_path, says, num_rows, kinds):
    trainer = trained(tmp_path, says=says, reward=never, max_steps=1)
    assert num_probed(trainer) == 2 * num_rows * (3 + len(says) + 1)
    assert [event[1] for event in gold_events(trainer)] == kinds
    assert first_entry(trainer, "gold_share/first") == 31 / 32, "nothing shows them bare"


def last_of_many(count: int) -> Any:
    """A verifier that accepts the last of so many texts."""
    num_asked = 0

    def reward(completions: list[str], **_: Any) -> list[float]:
        nonlocal num_asked
        num_asked += len(completions)
        return [float(num_asked - len(completions) + i + 1 == count) for i in range(len(completions))]

    return reward


def test_one_correct_long_answer_of_many_leaves_doubt_in_which_gold_answers_are_not_learnt(tmp_path):
    trainer = runs.trainer(tmp_path, says=LONG, **{**OPTIONS, "reward": last_of_many(32)})
    begin(trainer)
    state = trainer.runtime.state["gold"]["skills"]
    assert {skill: state[skill]["first"]["attempts"] for skill in state} == {"first": 16, "second": 32}
    assert trainer.runtime.weights.gold_share == {"first": 0.0, "second": 31 / 32}
    assert [event[1:] for event in gold_events(trainer)] == [("gold answers short", "second")]


def begin(trainer: Any) -> None:
    """Let the student answer rows, as `train` does."""
    (callback,) = answering(trainer)
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def answering(trainer: Any) -> list[Any]:
    handler = trainer.callback_handler
    return [each for each in handler.callbacks if isinstance(each, first_answers.FirstAnswersCallback)]


def odd(completions: list[str], **_: Any) -> list[float]:
    """A verifier that accepts texts of odd length."""
    return [float(len(text) % 2) for text in completions]


def test_the_counts_are_those_of_greedy_answers_and_no_random_number_is_taken(tmp_path):
    trainer = runs.trainer(tmp_path, **{**OPTIONS, "reward": odd})
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    begin(trainer)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    for skill in ("first", "second"):
        counts = trainer.runtime.state["gold"]["skills"][skill]["first"]
        rows = trainer.stream.examples(skill, counts["attempts"])
        answers = generate(trainer.model, trainer._encoder, rows, max_new_tokens=12)
        rewards = odd([answer.text for answer in answers])
        ids = [tiny.tokenizer()(answer.text)["input_ids"] for answer in answers]
        lengths = [len(tokens) + answer.is_complete for tokens, answer in zip(ids, answers, strict=True)]
        assert (counts["attempts"], counts["attempt_tokens"]) == (len(rows), sum(lengths))
        assert counts["successes"] == sum(rewards) > 0
        assert counts["success_tokens"] == sum(n * reward for n, reward in zip(lengths, rewards, strict=True))


def test_no_more_rows_are_answered_at_a_time_than_a_rollout_samples(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        first_answers, "generate", lambda *args, **options: (sizes.append(options), generate(*args, **options))[1]
    )
    begin(runs.trainer(tmp_path, says=SHORT, per_device_train_batch_size=4, **OPTIONS))
    assert [options["batch_size"] for options in sizes] == [4]


def none_applies(completions: list[str], **_: Any) -> list[None]:
    """A verifier that applies to no row."""
    return [None] * len(completions)


async def later(completions: list[str], **_: Any) -> list[float]:
    """A verifier that cannot be asked about any text."""
    return runs.begins_well(completions)


def test_answers_that_nothing_judges_show_nothing(tmp_path):
    trainer = runs.trainer(tmp_path, says=LONG, **{**OPTIONS, "reward": none_applies})
    begin(trainer)
    assert num_probed(trainer) == 2 * 8 * (3 + 11)
    assert trainer.runtime.weights.gold_share == {"first": 31 / 32, "second": 31 / 32}


@pytest.mark.parametrize("changes", [{"reward": later}, {"gold_share": 0.5}, {"max_completion_length": 4}])
def test_where_answers_can_change_nothing_the_student_is_not_asked(tmp_path, changes):
    assert not answering(runs.trainer(tmp_path, **{**OPTIONS, **changes}))


def test_a_resumed_training_does_not_ask_again(tmp_path, monkeypatch):
    options = {"says": LONG, "max_steps": 3}
    whole = trained(tmp_path / "whole", save_strategy="steps", save_steps=1, **options)
    monkeypatch.setattr(first_answers, "generate", lambda *_, **__: pytest.fail("asked again"))
    resumed = runs.trainer(tmp_path / "resumed", **{**OPTIONS, **options})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert resumed.runtime.state == whole.runtime.state
    assert resumed.flop_meter.parts == whole.flop_meter.parts
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_student_with_an_adapter_answers_with_it(tmp_path):
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = runs.trainer(tmp_path, says=LONG, peft_config=adapter, **OPTIONS)
    begin(trainer)
    assert trainer.runtime.weights.gold_share == {"first": 0.0, "second": 0.0}
    assert trainer.model.training


needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


@pytest.mark.parametrize("way", ["cpu", "fsdp2", pytest.param("zero3", marks=needs_deepspeed)])
def test_two_processes_come_to_the_first_weights_and_counts_of_one(tmp_path, way):
    environment = sharing_environment(f"accelerate/{way}")
    arguments = [str(tmp_path), "2", "first answers"]
    run_modules("tests.support.gold_prompts_one_and_two", arguments, 2, log=tmp_path / "log", environment=environment)
    one = runs.trainer(tmp_path / "one", **runs.FIRST_ANSWERS)
    one.train()
    assert len(one.records[0].gold_groups) == 8
    expected = whole_state_dict(one)
    for rank in (0, 1):
        weights, state = torch.load(tmp_path / f"{rank}.pt")
        assert state == one.runtime.state
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
