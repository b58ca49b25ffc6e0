"""Teachers whose prompts show what rewards say of a completion, the completion, and a correct one of its group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rld.curricula.fixed import Uniform

import tests.support.attempts_one_and_two as runs
import tests.support.tiny as tiny
from rld.errors import RewardError, TeacherError
from rld.teachers.self_teacher import SelfTeacher
from rld.teachers.teacher import Teacher
from rld.trainer.rld_trainer import RLDTrainer
from tests.support.processes import run_modules
from tests.trainer.test_own_prompts import by_hand, trainer

FEEDBACK = "{feedback}:{question}"
CORRECT = "{correct_attempt}:{attempt}:{question}"


def watched(made: RLDTrainer) -> list[dict[str, Any]]:
    """Return a list that gets every rollout that teachers score, with its record and the report."""
    rollouts: list[dict[str, Any]] = []
    score = made._teacher_scoring.score

    def kept(batch: Any, record: Any, step: int) -> Any:
        report = score(batch, record, step)
        rollouts.append({**batch, "record": record, "report": report})
        return report

    made._teacher_scoring.score = kept  # type: ignore[method-assign]
    return rollouts


def own_prompts(record: Any, template: str) -> list[str | None]:
    """Return the prompt behind which each completion of a rollout of one process is scored; None where it is not."""
    texts, prompts = list(record.attempts), list[str | None]()
    for i, text in enumerate(texts):
        group = range(i // 4 * 4, i // 4 * 4 + 4)
        correct = [texts[j] for j in group if len(texts[j]) % 2 and j != i]
        values = {"feedback": "" if len(text) % 2 else text[:2], "attempt": text, "correct_attempt": [*correct, ""][0]}
        values = {f"{{{field}}}": value for field, value in values.items() if f"{{{field}}}" in template}
        prompt: str | None = template.replace("{question}", record.rows[i]["prompt"])
        for place, value in values.items():
            prompt = prompt.replace(place, value) if prompt is not None and value else None
        prompts.append(prompt)
    return prompts


@pytest.mark.parametrize("num_parts", [1, 4])
@pytest.mark.parametrize(("template", "kind"), [(FEEDBACK, "itself"), (CORRECT, "itself"), (CORRECT, "another")])
def test_the_target_is_what_the_teacher_says_behind_the_filled_prompt(tmp_path, template, kind, num_parts):
    """Numerically: a plain forward over each filled prompt with its completion; nothing where a text is missing."""
    other = tiny.model(seed=1).double()
    another = Teacher(other, "one", tokenizer=tiny.tokenizer(), prompt=template)
    teacher = SelfTeacher(template, "one") if kind == "itself" else another
    sizes = {"per_device_train_batch_size": 8 // num_parts, "gradient_accumulation_steps": num_parts}
    made = runs.trainer(tmp_path, [teacher], model=tiny.model().double(), max_steps=1, **sizes)
    rollouts = watched(made)
    made.train()
    (rollout,) = rollouts
    prompts = own_prompts(rollout["record"], template)
    places = [i for i, prompt in enumerate(prompts) if prompt is not None]
    assert 0 < len(places) < 8 if template == FEEDBACK else len(places) == 8
    taught = {key: rollout[key][places] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    model = tiny.model().double()
    filled = [prompt for prompt in prompts if prompt is not None]
    expected = by_hand(model, model if kind == "itself" else other, taught, filled)
    expected.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    (entry,) = [entry for entry in made.state.log_history if "loss" in entry]
    assert entry["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert entry["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert entry["loss"] > 0.01
    assert entry["teacher/one/informed"] == len(places) / 8
    assert rollout["report"].counts.tokens == {"one": sum(map(len, filled)) + int(taught["completion_mask"].sum())}
    assert rollout["report"].counts.tokens_saved == 0


def test_one_process_and_two_give_the_same_update(tmp_path):
    """Two processes share each prompt's completions, whose feedback and correct attempts each of them needs."""
    run_modules("tests.support.attempts_one_and_two", [str(tmp_path), "2"], 2, log=tmp_path / "log")
    one = runs.trained(tmp_path / "one")
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), one, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one, torch.cat([weight.flatten() for weight in tiny.model().parameters()]), atol=1e-4)


def test_the_gate_asks_by_the_first_completion_that_has_all_and_nowhere_else(tmp_path):
    """Of prompts whose completions are all correct no reward says anything, so that the teacher is not asked."""

    def first_half(completions: list[str], prompts: list[str], log_extra: Any, **_: Any) -> list[float]:
        values = [float(i >= 4 or len(text) % 2) for i, text in enumerate(completions)]
        texts = zip(values, completions, strict=True)
        log_extra("feedback", [None if value else text for value, text in texts])
        return values

    made = runs.trainer(tmp_path, [SelfTeacher(FEEDBACK)], reward_funcs=first_half, gate="per_prompt", max_steps=2)
    rollouts, asked = watched(made), list[dict[str, Any]]()
    ask = made._teacher_scoring.gate.ask  # type: ignore[union-attr]

    def kept(*args: Any, **options: Any) -> Any:
        questions = ask(*args, **options)
        asked.append(dict(questions.teachers[0].rows))
        return questions

    made._teacher_scoring.gate.ask = kept  # type: ignore[union-attr, method-assign]
    made.train()
    for rollout, questions in zip(rollouts, asked, strict=True):
        record = rollout["record"]
        (row,) = questions.values()
        assert row["prompt"] == record.rows[0]["prompt"]
        assert row["rollout_texts"]["feedback"] == next(text for text in record.attempts[:4] if not len(text) % 2)
        assert not rollout["teacher_weights"][4:].any()
    assert len(asked) == 2


@pytest.mark.parametrize("refill", [0, 1])
def test_feedback_of_several_rewards_belongs_to_its_completion_and_is_in_trls_table(tmp_path, refill):
    def first(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("feedback", [f"a{text}" if text else None for text in completions])
        return [float(len(text) % 2) for text in completions]

    def second(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("feedback", [None for _ in completions])
        log_extra("other", [len(text) for text in completions])
        return [0.0] * len(completions)

    made = RLDTrainer(
        tiny.model(),
        [first, second],
        runs.RLDConfig(**tiny.rld_options(tmp_path, max_steps=2, refill=refill, max_completion_length=3)),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[SelfTeacher("{feedback}:{question}")],
        controller=runs.FixedController(policy=1.0, response=1.0),
        curriculum=Uniform({"first": 1, "second": 1}) if refill else None,
    )
    rollouts = watched(made)
    made.train()
    for rollout in rollouts:
        record = rollout["record"]
        assert list(record.feedback) == [f"a{text}" if text else "" for text in record.attempts]
        assert (record.refilled is not None) == bool(refill)
    if not refill:
        extra = made._logs["extra"]
        assert len(extra["feedback"]) == len(extra["other"]) == len(made._logs["completion"])
        assert list(extra["feedback"])[-8:] == [text or None for text in rollouts[-1]["record"].feedback]


def test_completions_of_a_prompt_that_was_replaced_have_no_feedback_of_the_earlier_ones(tmp_path):
    rounds: list[None] = []

    def silent_once_correct(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        rounds.append(None)
        if len(rounds) % 2:
            log_extra("feedback", ["wrong" for _ in completions])
            return [0.0] * len(completions)
        return [float(i % 2) for i in range(len(completions))]

    made = RLDTrainer(
        tiny.model(),
        silent_once_correct,
        runs.RLDConfig(**tiny.rld_options(tmp_path, max_steps=1, refill=1, max_completion_length=3)),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[SelfTeacher("{feedback}:{question}")],
        controller=runs.FixedController(policy=1.0, response=1.0),
        curriculum=Uniform({"first": 1, "second": 1}),
    )
    (rollouts, _) = watched(made), made.train()
    assert list(rollouts[0]["record"].feedback) == [""] * 8


def test_a_gold_answer_in_place_of_a_completion_is_no_attempt(tmp_path):
    def odd(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra(column="feedback", values=["said" for _ in completions])
        return [float(len(text) % 2) for text in completions]

    made = RLDTrainer(
        tiny.model(),
        odd,
        runs.RLDConfig(**tiny.rld_options(tmp_path, max_steps=1, gold_completions=1, gate="per_prompt")),
        tiny.rows(),
        processing_class=tiny.tokenizer(),
        teachers=[SelfTeacher("{attempt}:{feedback}:{question}")],
        controller=runs.FixedController(policy=1.0, response=1.0),
    )
    rollouts, asked = watched(made), list[dict[str, Any]]()
    ask = made._teacher_scoring.gate.ask  # type: ignore[union-attr]

    def kept(*args: Any, **options: Any) -> Any:
        questions = ask(*args, **options)
        asked.extend(questions.teachers[0].rows.values())
        return questions

    made._teacher_scoring.gate.ask = kept  # type: ignore[union-attr, method-assign]
    made.train()
    record = rollouts[0]["record"]
    sampled = [text for text, is_fixed in zip(record.attempts, record.is_fixed_B.tolist(), strict=True) if not is_fixed]
    assert asked and all(row["rollout_texts"]["attempt"] in sampled for row in asked)
    assert not rollouts[0]["teacher_weights"][record.is_fixed_B].any()


def test_a_reward_that_never_gives_feedback_is_told_of_and_nothing_is_taught(tmp_path):
    made = runs.trainer(tmp_path, [SelfTeacher(FEEDBACK)], reward_funcs=tiny.letters, max_steps=1)
    with pytest.warns(UserWarning, match=r"no reward gives feedback, which the prompts of self show"):
        made.train()
    (entry,) = [entry for entry in made.state.log_history if "loss" in entry]
    assert entry["loss"] == entry["teacher/self/informed"] == 0


def test_a_prompt_that_does_not_fit_the_context_is_left_out_with_a_warning(tmp_path):
    def long(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("feedback", ["a" * (80 if i % 2 else 2) for i in range(len(completions))])
        return [0.0] * len(completions)

    made = runs.trainer(tmp_path, [SelfTeacher(FEEDBACK)], reward_funcs=long, max_steps=1)
    with pytest.warns(UserWarning, match=r"4 of 8 prompts with what the rollout fills in do not fit its context of 64"):
        made.train()
    (entry,) = [entry for entry in made.state.log_history if "loss" in entry]
    assert entry["teacher/self/informed"] == 0.5


def test_feedback_that_is_none_is_an_error_only_where_a_teacher_reads_it(tmp_path):
    def numbers(completions: list[str], log_extra: Any, **_: Any) -> list[float]:
        log_extra("feedback", [1 for _ in completions])
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"log_extra\('feedback', ...\) should get one text"):
        runs.trainer(tmp_path, [SelfTeacher(FEEDBACK)], reward_funcs=numbers).train()
    made = runs.trainer(tmp_path, [SelfTeacher("{question}")], reward_funcs=numbers, max_steps=1)
    made.train()
    assert list(made._logs["extra"]["feedback"]) == [1] * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_dataset": tiny.rows().add_column("feedback", ["a"] * 16)}, "the rows have a column of that name"),
        ({"reward_funcs": None}, "its prompt shows {feedback}, and there is no reward"),
        ({"gold_completions": 4, "signals": ["response"]}, "with gold answers alone the student tries nothing"),
    ],
)
def test_a_trainer_without_such_texts_is_refused(tmp_path, options, message):
    with pytest.raises(TeacherError, match=message):
        trainer(
            tmp_path, SelfTeacher("{feedback}:{correct_attempt}:{question}"), **{"reward_funcs": runs.odd, **options}
        )
