"""Prompts that have their gold answer alone, beside others whose completions are sampled."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from rld.curricula.fixed import Uniform
from torch import Tensor

import tests.support.gold_prompts_one_and_two as runs
import tests.support.tiny as tiny
from rld.data.prompt_stream import PromptStream
from rld.errors import DataError, RecipeError
from rld.rollout import row_keys
from rld.rollout.accepted_answers import AcceptedAnswers
from rld.rollout.gold import gold_completions
from rld.rollout.rewards import SuccessRule
from rld.teachers.self_teacher import SelfTeacher
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.processes import run_modules, sharing_environment
from tests.trainer.test_processes import launch

MODULE = "gold_prompts_one_and_two"

OF_TEACHERS: dict[str, Any] = {
    "seeds": (runs.FIRST, runs.SECOND),
    "reward": runs.brief,
    "gold_answers": "teachers",
}


def rollout(trainer: RLDTrainer, num_rows: int = 32) -> Any:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [trainer.stream.dataset[i // 4] for i in range(num_rows)]
    return trainer._generate_and_score_completions(rows)


def gradient(model: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_the_gradient_is_that_of_policy_and_gold_answers_in_float64(tmp_path):
    trainer = runs.trainer(tmp_path)
    trainer.model.double()
    batch = rollout(trainer)
    trainer._compute_loss(trainer.model, batch).backward()
    is_gold_B, mask_BT = batch["is_gold"], batch["completion_mask"]
    assert is_gold_B.view(-1, 4).all(1).sum() == 4 and is_gold_B.sum() == 16

    plain = tiny.model(tie_word_embeddings=False).double()
    ids_BS = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention_BS = torch.cat([batch["prompt_mask"], mask_BT], 1)
    positions_BS = (attention_BS.cumsum(1) - 1).clamp(min=0)
    logits_BSV = plain(ids_BS, attention_mask=attention_BS, position_ids=positions_BS).logits
    num = mask_BT.shape[1]
    log_pi_BT = logits_BSV[:, -num - 1 : -1].log_softmax(-1).gather(2, batch["completion_ids"][..., None])[..., 0]
    advantages_B = 0.6 * batch["advantages"].double() * ~is_gold_B
    weights_B = torch.where(is_gold_B, 0.7, advantages_B)
    (-(weights_B[:, None] * log_pi_BT * mask_BT).sum() / mask_BT.sum()).backward()
    torch.testing.assert_close(gradient(trainer.model), gradient(plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}])
def test_rewards_of_gold_answers_do_not_scale_advantages(tmp_path, options):
    trainer = runs.trainer(tmp_path, **options)
    batch = rollout(trainer)
    own = batch["advantages"][~batch["is_gold"]]
    assert (batch["advantages"][batch["is_gold"]] == 0).all()
    assert float(own.pow(2).mean()) == pytest.approx(1.0, abs=0.35), "as large as without gold answers"
    logged = trainer._metrics["train"]["reward"][-1]
    assert logged == pytest.approx(float(trainer.records[-1].rewards_AR[~batch["is_gold"]].mean()))


def test_a_gold_group_has_prompts_of_one_skill_with_their_own_answers(tmp_path):
    trainer = runs.trainer(tmp_path)
    batch = rollout(trainer)
    rows, is_gold = trainer.records[0].rows, batch["is_gold"].tolist()
    texts = [text.replace("<eos>", "") for text in tiny.tokenizer().batch_decode(batch["completion_ids"])]
    answers = [text.replace("<pad>", "").replace(" ", "") for text in texts]
    assert all(answers[i] == rows[i]["answer"] for i in range(32) if is_gold[i])
    groups = [rows[i : i + 4] for i in range(0, 32, 4) if is_gold[i]]
    assert all(len({row["skill"] for row in group}) == 1 for group in groups)
    assert max(len({row["prompt"] for row in group}) for group in groups) >= 3, "prompts are drawn, not repeated"
    assert Counter(group[0]["skill"] for group in groups) == {"first": 2, "second": 2}


def test_a_gold_answer_that_the_student_cannot_write_is_passed_over_and_told(tmp_path):
    trainer = runs.trainer(tmp_path, gold_share=1.0, max_completion_length=5)
    with pytest.warns(UserWarning, match="takes 6 tokens with its end, and 5 are allowed") as caught:
        rollout(trainer)
    assert {row["answer"] for row in trainer.records[0].rows} == {*runs.ANSWERS} - {"ghija"}
    assert len([warning for warning in caught if "gold answers" in str(warning.message)]) == 1


def first_accepted(prompt: str) -> str | None:
    """What the first teacher says to a prompt, or else the second, where the verifier accepts it."""
    for teacher in runs.teachers(runs.FIRST, runs.SECOND):
        ids = tiny.tokenizer()(prompt, return_tensors="pt")["input_ids"]
        whole = teacher.load().generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0, eos_token_id=1)[0]
        text = tiny.tokenizer().decode(whole[ids.shape[1] :], skip_special_tokens=True)
        if whole[-1] == 1 and runs.brief([text]) == [1.0]:
            return text
    return None


def test_answers_of_teachers_that_the_verifier_accepts_are_learnt_each_asked_for_once(tmp_path):
    trainer = runs.trainer(tmp_path, gold_share=1.0, **OF_TEACHERS)
    batches = [rollout(trainer) for _ in range(6)]
    expected = {prompt: first_accepted(prompt) for prompt in tiny.rows()["prompt"]}
    learnt = set()
    for batch, record in zip(batches, trainer.records, strict=True):
        assert batch["is_gold"].all() and not record.is_sampled_A.any()
        texts = tiny.tokenizer().batch_decode(batch["completion_ids"] * batch["completion_mask"])
        for text, row in zip(texts, record.rows, strict=True):
            assert text.replace(" ", "").replace("<pad>", "") == f"{expected[row['prompt']]}<eos>"
            assert row["answer"] in runs.ANSWERS, "verifiers read the row's own answer"
            learnt.add(row["prompt"])
    assert learnt == {prompt for prompt, text in expected.items() if text is not None} != set(expected)
    spent = trainer.flop_meter.accounts["answers"]
    assert spent == 2 * trainer.teachers[0].num_parameters() * trainer.totals.tokens_scored > 0
    rollout(trainer)
    assert trainer.flop_meter.accounts["answers"] == spent, "no row is new"
    assert sum(trainer.totals.prompts_by_teacher.values()) == 7 * 32, "each is taught by the one that answered"
    shares = trainer._metrics["train"]["answered/first"]
    assert 0 < min(shares) < 1, "some rows were passed over"


@pytest.mark.parametrize("share", [1.0, None])
def test_teachers_answer_the_skill_whose_rows_have_no_answers_and_rows_the_other(tmp_path, share):
    options = {**OF_TEACHERS, "gold_answers": "either", "unanswered": "first"}
    trainer = runs.trainer(tmp_path, gold_share=share, max_completion_length=6, **options)
    is_gold = rollout(trainer)["is_gold"].tolist()
    record = trainer.records[0]
    for i in itertools.compress(range(32), is_gold):
        row = record.rows[i]
        answer = first_accepted(row["prompt"]) if row["skill"] == "first" else row["answer"]
        assert record.learnt_row(i)["answer"].replace(" ", "") == answer
    assert {row["skill"] for row in itertools.compress(record.rows, is_gold)} == {"first", "second"}


def none_of_first(completions: list[str], skill: list[str], **_: Any) -> list[float]:
    """A verifier that accepts nothing of the skill `first`."""
    rewards = runs.brief(completions)
    return [0.0 if name == "first" else reward for reward, name in zip(rewards, skill, strict=True)]


def test_a_teacher_that_is_hardly_ever_right_is_asked_for_a_few_rows_of_a_rollout(tmp_path, monkeypatch):
    num_asked, of = [], AcceptedAnswers.of
    monkeypatch.setattr(AcceptedAnswers, "of", lambda self, rows: num_asked.append(len(rows)) or of(self, rows))

    accepted = iter([1.0])

    def one_alone(completions: list[str], **_: Any) -> list[float]:
        return [next(accepted, 0.0) for _ in completions]

    options = {**OF_TEACHERS, "reward": one_alone, "per_device_train_batch_size": 128}
    rollout(runs.trainer(tmp_path, num_rows=4000, gold_share=1.0, **options), num_rows=128)
    assert num_asked == [32], "16 rows of each skill, of which one at most has an answer"


def test_where_no_teacher_is_right_completions_are_sampled(tmp_path):
    trainer = runs.trainer(tmp_path, gold_share=1.0, **{**OF_TEACHERS, "reward": none_of_first})
    batch = rollout(trainer)
    is_gold = batch["is_gold"].tolist()
    assert [row["skill"] == "second" for row in trainer.records[0].rows] == is_gold
    groups = [trainer.records[0].rows[i : i + 4] for i in range(0, 32, 4) if not is_gold[i]]
    assert all(len({row["prompt"] for row in group}) == 1 for group in groups)
    assert trainer._metrics["train"]["answered/first"] == [0.0]
    assert trainer.runtime._window.attempts.gold_S.tolist() == [0, 16]


def test_teachers_are_asked_no_more_on_a_skill_where_none_is_ever_right_and_that_is_told_once(tmp_path):
    trainer = runs.trainer(tmp_path, num_rows=4000, **{**OF_TEACHERS, "reward": none_of_first})
    with pytest.warns(UserWarning, match="no teacher has answered one of") as caught:
        for _ in range(9):
            rollout(trainer)
    told = [str(warning.message) for warning in caught if "no teacher has answered" in str(warning.message)]
    assert len(told) == 1 and told[0].startswith("skill 'first'")
    shares = trainer._metrics["train"]
    assert shares["answered/first"] == [0.0] * 4 and len(shares["answered/second"]) == 9, "16 rows in each of four"


def test_a_teacher_with_other_weights_answers_anew(tmp_path):
    trainer = runs.trainer(tmp_path, gold_share=1.0, **{**OF_TEACHERS, "seeds": [runs.FIRST]})
    for _ in range(4):
        rollout(trainer)
    before = {row["prompt"]: text for record in trainer.records for row, text in said(record)}
    trainer.ensemble.swap(0, runs.teachers(runs.SECOND)[0].load(), tiny.tokenizer())
    rollout(trainer)
    after = {row["prompt"]: text for row, text in said(trainer.records[-1])}
    assert after and all(before.get(prompt) != text for prompt, text in after.items())


def said(record: Any) -> list[tuple[dict[str, Any], str]]:
    """Rows with the answers of teachers that are learnt."""
    return [(record.rows[i], text) for i, text in record.answers.items()]


def test_completions_that_nothing_judges_are_sampled_though_no_attempts(tmp_path):
    def of_first(completions: list[str], skill: list[str], **_: Any) -> list[float | None]:
        return [1.0 if name == "first" else None for name in skill]

    trainer = runs.trainer(tmp_path, reward=of_first)
    rollout(trainer)
    counts = trainer.runtime._window.attempts
    assert (counts.sampled_S + counts.gold_S).tolist() == [16, 16] and counts.attempts_S.tolist() == [8, 0]


def test_no_teacher_reads_gold_prompts_and_they_are_no_attempts(tmp_path):
    trainer = runs.trainer(tmp_path, seeds=[1])
    trainer._success_rule = SuccessRule(success_at=0.2)
    batch = rollout(trainer)
    is_gold_B = batch["is_gold"]
    assert not batch["teacher_tokens"][is_gold_B].any() and batch["teacher_tokens"][~is_gold_B].any()
    assert trainer.runtime._window.attempts.attempts_S.sum() == 16
    assert trainer.runtime._window.attempts.groups_S.sum() == 4
    assert trainer.runtime._window.attempts.gold_S.tolist() == [8, 8]
    lengths_B = batch["completion_mask"].sum(1)
    assert trainer.runtime._window.attempts.attempt_tokens_S.sum() == lengths_B[~is_gold_B].sum()
    succeeded_B = trainer.records[-1].succeeded_A
    assert trainer.runtime._window.attempts.success_tokens_S.sum() == lengths_B[succeeded_B].sum() > 0
    assert trainer.totals.tokens_generated == lengths_B[~is_gold_B].sum()
    share = lengths_B[~is_gold_B].sum() / lengths_B.sum()
    torch.testing.assert_close(batch["signal_weights"][~is_gold_B][0], torch.tensor([0.6, 0.4 * share, 0.0]))


def shares_of(trainer: RLDTrainer) -> list[float]:
    return [entry["gold_share/first"] for entry in trainer.state.log_history if "gold_share/first" in entry]


def test_most_prompts_have_their_gold_answer_where_no_completion_can_be_twice_as_long(tmp_path):
    trainer = runs.trainer(tmp_path, num_rows=400, gold_share=None, max_steps=8, optim="adamw_torch")
    trainer.train()
    assert trainer.runtime.controller.doubtful_skills == ["second"], "whose gold answers have 2.5 tokens on the mean"
    assert shares_of(trainer) == [31 / 32] * 8, "those of the first skill have 4.5, and completions 6 at most"
    losses = [entry["loss/gold"] for entry in trainer.state.log_history if "loss/gold" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_rows_of_levels_count_as_if_all_had_as_few_as_the_smallest():
    rows = tiny.rows(12).map(lambda _, i: {"level": int(i >= 8)}, with_indices=True)
    stream = PromptStream.over(rows, Uniform({"first": 2, "second": 2}), seed=0, num_slots=8)
    assert stream.gold_rows == {"first": 4, "second": 4}


def test_few_rows_repeat_after_eight_passes(tmp_path):
    trainer = runs.trainer(tmp_path, gold_share=None, max_steps=11)
    trainer.train()
    shares = shares_of(trainer)
    assert shares[:5] == [31 / 32] * 5, "a tick comes after five updates"
    assert len(shares) > 5, "a tick has 70 of each skill's 8 answers"
    assert all(0.5 < share < 0.9 for share in shares[5:]), "a completion is also sampled, and teachers read it"
    assert {event.skill for event in trainer.events if event.kind == "gold answers repeat"} == {"first", "second"}


@pytest.mark.parametrize("options", [{"gold_share": 0.5}, {"gold_share": 1.0}, OF_TEACHERS])
def test_accumulation_does_not_change_the_update(tmp_path, options):
    whole, quarters = (runs.trained(tmp_path / str(parts), num_parts=parts, **options) for parts in (1, 4))
    torch.testing.assert_close(whole, quarters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, OF_TEACHERS])
def test_one_process_and_two_give_the_same_update(tmp_path, options):
    launch(tmp_path, 2, *["teachers"][: len(options)], module=MODULE)
    one = runs.trained(tmp_path / "one", **options)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["cpu", "fsdp2"])
def test_a_process_without_samples_of_its_own_takes_part_in_sampling(tmp_path, way):
    environment = sharing_environment(f"accelerate/{way}")
    arguments = [str(tmp_path), "2", "half a group"]
    run_modules(f"tests.support.{MODULE}", arguments, 2, log=tmp_path / "log", environment=environment)


@pytest.mark.parametrize("whose", [{}, OF_TEACHERS])
def test_a_resumed_training_learns_the_same_gold_answers(tmp_path, whose):
    options = {"gold_share": None, "max_steps": 8, **whose}
    whole = runs.trainer(tmp_path / "whole", save_strategy="steps", save_steps=7, **options)
    whole.train()
    resumed = runs.trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert resumed.runtime.state == whole.runtime.state
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def answered_first(trainer: RLDTrainer) -> list[float | None]:
    """The share of rows of the skill `first` that teachers answered at each update; None: none was asked for."""
    return [entry.get("answered/first") for entry in trainer.state.log_history if "gold_share/first" in entry]


def test_a_resumed_training_asks_no_more_for_answers_of_a_skill_where_none_was_ever_right(tmp_path):
    options = {"max_steps": 8, "num_rows": 4000, **OF_TEACHERS, "reward": none_of_first}
    whole = runs.trainer(tmp_path / "whole", save_strategy="steps", save_steps=3, **options)
    whole.train()
    assert answered_first(whole) == [0.0] * 4 + [None] * 4
    for step in (3, 6):  # before and after the fourth rollout, with which enough rows were asked for
        resumed = runs.trainer(tmp_path / "resumed", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert answered_first(resumed) == answered_first(whole)
        for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("answer", [None, ""])
def test_an_answer_that_is_missing_is_not_learnt_as_an_empty_one(answer):
    with pytest.raises(DataError, match="no text in its column 'answer'"):
        gold_completions([{"prompt": "a=", "answer": answer}], tiny.encoder(), 4)


def test_without_a_reward_the_share_is_set_by_hand(tmp_path):
    args = RLDConfig(**tiny.rld_options(tmp_path, gold_weight=1.0))
    curriculum = Uniform({"first": 1, "second": 1})
    with pytest.raises(RecipeError, match="gold_share"):
        RLDTrainer(
            tiny.model(),
            None,
            args,
            tiny.rows(),
            processing_class=tiny.tokenizer(),
            teachers=runs.teachers(1),
            curriculum=curriculum,
        )


@pytest.mark.parametrize(
    "options",
    [
        {"gold_share": 0.0},
        {"gold_share": 0.5, "gold_completions": 1},
        {"refill": 2},
        {"gold_answers": "student"},
        {"gold_answers": "teachers", "gold_completions": 1},
    ],
)
def test_options_that_contradict_it_are_refused(tmp_path, options):
    with pytest.raises(RecipeError, match=next(iter(options))):
        RLDConfig(**tiny.rld_options(tmp_path, gold_weight=1.0, **options))


async def later(completions: list[str], **_: Any) -> list[float]:
    """An asynchronous verifier."""
    return runs.brief(completions)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seeds": ()}, "no teachers"),
        ({"reward": later}, "asked about any text"),
        ({"teachers": [SelfTeacher("{question}", "itself")]}, "'itself' is the student itself"),
    ],
)
def test_answers_of_teachers_that_cannot_be_had_are_refused(tmp_path, monkeypatch, changes, reason):
    changes = dict(changes)
    if (teachers := changes.pop("teachers", None)) is not None:
        monkeypatch.setattr(runs, "teachers", lambda *_: teachers)
    with pytest.raises(RecipeError, match=f"gold_answers.*{reason}"):
        runs.trainer(tmp_path, **{**OF_TEACHERS, **changes})


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rewards_are_not_asked_about_gold_groups_but_one_where_there_are_no_others(tmp_path, share):
    arguments: list[str] = []

    def noting(completions: list[str], answer: list[str], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
        assert len(answer) == len(completions) and len(completions) % 4 == 0, "whole groups"
        arguments.extend(completions)
        log_extra("note", completions)
        for text in completions:
            log_extra("single", (text,))
        log_metric("number", len(completions))
        return tiny.letters(completions)

    async def later(completions: list[str], **_: Any) -> list[float]:
        arguments.extend(completions)
        return tiny.letters(completions)

    trainer = runs.trainer(tmp_path, reward=[noting, later], gold_share=share)
    rollout(trainer)
    record, texts = trainer.records[-1], list(trainer._logs["completion"])
    is_gold = record.is_gold_prompt_B
    sampled = [text for text, gold in zip(texts, is_gold.tolist(), strict=True) if not gold]
    assert arguments == 2 * (sampled or texts[:4])
    for column in ("note", "single"):
        notes = list(trainer._logs["extra"][column])
        assert len(notes) == len(texts) and [note for note in notes if note is not None] == (sampled or texts[:4])
        assert all(note in (None, text) for note, text in zip(notes, texts, strict=True))
    assert trainer._metrics["train"].get("number", []) == [len(sampled)] * bool(sampled)
    rewards_AR = record.compared_rewards_AR
    assert torch.isnan(rewards_AR).all(1).tolist() == is_gold.tolist()
    torch.testing.assert_close(rewards_AR[~is_gold], torch.tensor(tiny.letters(sampled))[:, None].expand(-1, 2))


def test_without_a_curriculum_it_is_refused(tmp_path):
    args = RLDConfig(**tiny.rld_options(tmp_path, gold_weight=1.0))
    with pytest.raises(RecipeError, match="curriculum"):
        RLDTrainer(tiny.model(), tiny.letters, args, tiny.rows(), processing_class=tiny.tokenizer())


def test_rows_that_differ_between_processes_are_refused(tmp_path, monkeypatch):
    trainer = runs.trainer(tmp_path, **OF_TEACHERS)
    monkeypatch.setattr(row_keys, "gather_object", lambda keys: [*keys, ["another row"]])
    with pytest.raises(DataError, match="a generator should take all of them from its rng"):
        rollout(trainer)
