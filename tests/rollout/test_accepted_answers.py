"""What teachers answer correctly, as the student would write it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from unicodedata import is_normalized

import pytest
import torch

import tests.support.gold_prompts_one_and_two as runs
import tests.support.tiny as tiny
from rld.errors import TeacherDown, TeacherError
from rld.models.prompting import PromptEncoder
from rld.rollout.accepted_answers import AcceptedAnswers
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.types import Answer
from tests.support.fleet import rows as chats
from tests.test_thinking import LENGTH, MEMBERS, THOUGHT, encoder, equal, thinker

CPU = torch.device("cpu")


def accepted(
    teachers: Sequence[Teacher], encoder: PromptEncoder, verify: Any, max_new_tokens: int, order: Sequence[int] = (0,)
) -> tuple[AcceptedAnswers, list[int]]:
    """What of some teachers' answers is accepted, and the tokens that they read and wrote for each question."""
    counts: list[int] = []
    answers = AcceptedAnswers(
        teachers,
        encoder,
        verify,
        max_new_tokens=max_new_tokens,
        device=CPU,
        order=lambda skill: order,
        count=lambda name, num_tokens, flops: counts.append(num_tokens),
    )
    return answers, counts


def texts(answers: AcceptedAnswers, given: list[dict[str, Any]]) -> list[str | None]:
    return [None if answer is None else answer.text for answer in answers.of(given)]


def rows() -> list[dict[str, Any]]:
    return [dict(row) for row in tiny.rows(10)]


def anything(completions: list[str], **_: Any) -> list[float]:
    """A verifier to which all answers are correct."""
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("teacher", "student", "begins"),
    [
        ("deepseek, which opens the part", "qwen3", f"<think>{THOUGHT}</think>\n\n"),
        ("qwen3", "deepseek, which opens the part", f"{THOUGHT.lstrip()}</think>\n\n"),
        ("deepseek, which opens the part", "special", f"[THINK]{THOUGHT}[/THINK]\n\n"),
    ],
)
def test_the_answer_of_another_family_is_learnt_with_its_thinking(teacher, student, begins):
    member = MEMBERS[teacher]
    one = Teacher(thinker(member), "one", tokenizer=member.tokenizer(), align="likelihood")
    answers, counts = accepted([one], encoder(MEMBERS[student]), equal, LENGTH)
    given = [row for row in chats(member) if is_normalized("NFC", row["answer"])]  # as Qwen's tokenizer writes it
    assert texts(answers, given) == [begins + row["answer"] for row in given]
    assert texts(answers, given[::-1]) == [begins + row["answer"] for row in given[::-1]]
    assert len(counts) == 1, "each row is asked once"


def test_thinking_without_an_end_and_answers_that_are_cut_off_are_not_learnt():
    member = MEMBERS["qwen3"]
    for is_closed, length in ((False, LENGTH), (True, 20)):
        one = Teacher(thinker(member, is_closed=is_closed), "one", tokenizer=member.tokenizer())
        verify = equal if is_closed is False else anything
        assert set(accepted([one], encoder(member), verify, length)[0].of(chats(member))) == {None}


def test_the_next_teacher_answers_where_the_first_ones_answer_is_not_accepted():
    made = runs.teachers(runs.FIRST, runs.SECOND)
    alone = [texts(accepted([one], tiny.encoder(), runs.brief, 6)[0], rows()) for one in made]
    answers, counts = accepted(made, tiny.encoder(), runs.brief, 6, order=[1, 0])
    assert texts(answers, rows()) == [second or first for first, second in zip(*alone, strict=True)]
    names = [answer and answer.teacher for answer in answers.of(rows())]
    assert names == [(b and "t67") or (a and "t92") for a, b in zip(*alone, strict=True)]
    assert None in alone[0] and None in alone[1] and alone[0] != alone[1]
    assert len(counts) == 2 and counts[0] > counts[1], "of the other teacher fewer rows are asked"


def test_an_answer_to_which_the_verifier_does_not_apply_is_not_learnt():
    def silent(completions: list[str], **_: Any) -> list[float | None]:
        return [None] * len(completions)

    assert set(accepted(runs.teachers(runs.FIRST), tiny.encoder(), silent, 6)[0].of(rows())) == {None}


class Silent(LocalLogprobs):
    """A teacher whose server does not answer."""

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Collection[int] = ()) -> list[Answer]:
        raise TeacherDown("no answer")


def test_a_served_teacher_answers_too_and_one_that_is_down_and_optional_answers_nothing():
    (here,) = runs.teachers(runs.FIRST)
    served = Teacher(LocalLogprobs(here, CPU), "served", tokenizer=tiny.tokenizer())
    both = [accepted([one], tiny.encoder(), anything, 6)[0] for one in (served, here)]
    assert texts(both[0], rows()) == texts(both[1], rows())
    down = Teacher(Silent(here, CPU), "down", tokenizer=tiny.tokenizer(), optional=True)
    assert set(accepted([down], tiny.encoder(), anything, 6)[0].of(rows())) == {None} and down.is_down
    needed = Teacher(Silent(here, CPU), "needed", tokenizer=tiny.tokenizer())
    with pytest.raises(TeacherDown):
        accepted([needed], tiny.encoder(), anything, 6)[0].of(rows())


def test_a_teacher_whose_logits_are_nan_is_named():
    (broken,) = runs.teachers(runs.FIRST)
    broken.load().model.norm.weight.data[0] = float("nan")
    with pytest.raises(TeacherError, match=f"teacher 't{runs.FIRST}' generates from logits that are NaN"):
        accepted([broken], tiny.encoder(), anything, 6)[0].of(rows())


def test_a_teacher_with_a_prompt_of_its_own_answers_that():
    (one,) = runs.teachers(runs.FIRST)
    own = Teacher(one.load(), "own", tokenizer=tiny.tokenizer(), prompt="{question}=")
    asked = [{**row, "prompt": "a=", "question": row["prompt"][:-1]} for row in rows()]
    said = texts(accepted([own], tiny.encoder(), anything, 6)[0], asked)
    assert said == texts(accepted([one], tiny.encoder(), anything, 6)[0], rows()) != [said[0]] * len(said)


def test_a_skill_is_asked_for_no_more_where_its_teacher_turns_wrong_until_it_changes_again():
    is_right = True

    def verify(completions: list[str], **_: Any) -> list[float]:
        return [float(is_right)] * len(completions)

    member = MEMBERS["qwen3"]
    one = Teacher(thinker(member), "one", tokenizer=member.tokenizer())
    answers, _ = accepted([one], encoder(member), verify, LENGTH)
    given = [row | {"skill": "add"} for row in chats(member)]
    assert any(texts(answers, given)) and not answers.unanswered_skills
    is_right = False
    answers.forget(0)
    with pytest.warns(UserWarning, match="skill 'add': no teacher has answered one of"):
        for _ in range(64 // len(given) + 1):
            assert not any(texts(answers, given))
    assert answers.unanswered_skills == {"add"}
    answers.forget(0)
    assert not answers.unanswered_skills
