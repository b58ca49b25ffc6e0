"""Teachers' greedy answers that the verifier accepts, for the student to learn.

That is sequence-level distillation (Kim and Rush 2016) without the teacher's mistakes.

Of several teachers the one that the controller weighs most on a row's skill answers first, and the next one where that
answer is not accepted. An answer that is empty, cut off or longer than the student may write is not accepted, nor is
one to which the verifier does not apply.

All processes ask for the same rows, answer a share of them and get all answers, so that they know the same as one
process alone.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from rld.errors import TeacherDown
from rld.models.generation import generate
from rld.models.prompting import PromptEncoder
from rld.models.taken_over import taken_over
from rld.rollout.gold import gold_problem
from rld.rollout.row_keys import row_keys
from rld.rollout.verifier import Verify, is_success, shared_rewards
from rld.teachers.output_checks import errors_of_a_teacher
from rld.teachers.teacher import Teacher
from rld.types import Answer, Row, skill_of
from rld.utils.flops import forward_flops

_MAX_KEPT = 50_000
"""Answers of a teacher that are kept; with more, all are forgotten."""

_MAX_REFUSED = 64
"""Rows of a skill to which no answer is accepted, without one that is, after which none is asked for."""


class AcceptedAnswer(NamedTuple):
    """An answer that the student learns."""

    text: str
    teacher: str
    """The name of the teacher that gave it."""


class AcceptedAnswers:
    """Lets teachers answer rows, and keeps what is accepted: a teacher answers a row once, until its weights change.

    Args:
        teachers: The teachers.
        encoder: The student's.
        verify: A reward with TRL's signature that gives 1 to a correct answer and None where it does not apply.
        max_new_tokens: Greatest length of an answer, the end token included.
        device: Where teachers answer.
        order: Returns the numbers of the teachers that answer rows of a skill, in their order.
        count: Is told of a teacher's name, tokens that it has read and written, and their FLOPs, over all processes.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        encoder: PromptEncoder,
        verify: Verify,
        *,
        max_new_tokens: int,
        device: torch.device,
        order: Callable[[str], Sequence[int]],
        count: Callable[[str, int, float], None],
    ) -> None:
        self.teachers, self.encoder, self.verify = list(teachers), encoder, verify
        self.max_new_tokens, self.device = max_new_tokens, device
        self._order, self._count = order, count
        self._memory: list[dict[str, str | None]] = [{} for _ in self.teachers]
        self._num_rows, self._num_answers = Counter[str](), Counter[str]()
        self._num_refused, self._answered_skills = Counter[str](), set[str]()

    def of(self, rows: Sequence[Row]) -> list[AcceptedAnswer | None]:
        """Return the answer to each row that the student learns; None where no teacher's is accepted.

        Args:
            rows: The same on every process.

        Raises:
            TeacherDown: a teacher that is not optional does not answer.
            TeacherError: a teacher's logits are NaN, or a row lacks what its prompt shows.
        """
        answers: list[AcceptedAnswer | None] = [None] * len(rows)
        orders = [self._order(skill_of(row)) for row in rows]
        for place in range(len(self.teachers)):
            for k in range(len(self.teachers)):
                turns = (place < len(order) and order[place] == k for order in orders)
                numbers = [i for i, is_turn in enumerate(turns) if is_turn and answers[i] is None]
                for i, text in zip(numbers, self._of_teacher(k, [rows[i] for i in numbers]), strict=True):
                    answers[i] = None if text is None else AcceptedAnswer(text, str(self.teachers[k].name))
        self._note(rows, answers)
        return answers

    def forget(self, k: int) -> None:
        """Forget the answers of teacher k, because it, or what the verifier accepts, has changed."""
        self._memory[k].clear()
        self._num_refused.clear()
        self._answered_skills.clear()

    @property
    def unanswered_skills(self) -> set[str]:
        """Skills of which many rows were asked for since a teacher changed last, and none was answered correctly."""
        return {skill for skill, count in self._num_refused.items() if count >= _MAX_REFUSED} - self._answered_skills

    def state_dict(self) -> dict[str, Any]:
        """Return as JSON what decides for which skills answers are asked for; the answers are asked for again."""
        return {"num_refused": dict(self._num_refused), "answered_skills": sorted(self._answered_skills)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._num_refused, self._answered_skills = Counter(state["num_refused"]), set(state["answered_skills"])

    def take_shares(self) -> dict[str, float]:
        """Return which share of the rows of each skill that were asked for since the last call has an answer."""
        shares = {skill: self._num_answers[skill] / count for skill, count in self._num_rows.items()}
        self._num_rows, self._num_answers = Counter(), Counter()
        return shares

    def _of_teacher(self, k: int, rows: Sequence[Row]) -> list[str | None]:
        """Return what is accepted of teacher k's answers to rows, of those that it has answered before at once."""
        keys, answers_by_key = row_keys(rows), self._memory[k]
        if len(answers_by_key) > _MAX_KEPT:
            answers_by_key.clear()
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in answers_by_key}
        if new:
            answers_by_key.update(zip(new, self._answered(self.teachers[k], [*new.values()]), strict=True))
        return [answers_by_key[key] for key in keys]

    def _answered(self, teacher: Teacher, rows: Sequence[Row]) -> list[str | None]:
        """Return what is accepted of a teacher's answers to rows."""
        if teacher.is_down:
            return [None] * len(rows)
        try:
            answers = self._answers(teacher, rows)
        except TeacherDown:
            if not teacher.optional:
                raise
            teacher.is_down = True
            return [None] * len(rows)
        rewards = shared_rewards(self.encoder, rows, [answer.text for answer in answers], self.verify)
        return [
            answer.text if self._is_learnt(row, answer, reward) else None
            for row, answer, reward in zip(rows, answers, rewards, strict=True)
        ]

    def _answers(self, teacher: Teacher, rows: Sequence[Row]) -> list[Answer]:
        """Return a teacher's greedy answers, as the student would write them."""
        own_rows, encoder = [teacher.own_row(row) for row in rows], teacher.prompt_encoder(self.encoder)
        with teacher.answering(self.device) as model, errors_of_a_teacher():
            name = f"teacher '{teacher.name}'"
            answers = generate(model, encoder, own_rows, max_new_tokens=self.max_new_tokens, name=name)
        num_tokens = encoder.count_tokens(own_rows, encoder.encode_answers([answer.text for answer in answers]))
        self._count(str(teacher.name), num_tokens, forward_flops(teacher.num_parameters(), num_tokens))
        return taken_over(
            answers,
            [row["prompt"] for row in rows],
            writer=encoder,
            writer_prompts=[row["prompt"] for row in own_rows],
            learner=self.encoder,
        )

    def _is_learnt(self, row: Row, answer: Answer, reward: float | None) -> bool:
        if not (answer.is_complete and answer.text and reward is not None and is_success(reward)):
            return False
        return gold_problem({**row, "answer": answer.text}, self.encoder, self.max_new_tokens) is None

    def _note(self, rows: Sequence[Row], answers: Sequence[AcceptedAnswer | None]) -> None:
        """Count the rows and those with an accepted answer; warn of a skill where none has one."""
        skills, before = [skill_of(row) for row in rows], self.unanswered_skills
        self._num_rows.update(skills)
        accepted = Counter(skill for skill, answer in zip(skills, answers, strict=True) if answer is not None)
        self._num_answers.update(accepted)
        self._answered_skills |= accepted.keys()
        if not all(teacher.is_down for teacher in self.teachers):
            self._num_refused.update(skill for skill in skills if skill not in self._answered_skills)
        for skill in sorted(self.unanswered_skills - before):
            warnings.warn(
                f"skill '{skill}': no teacher has answered one of {self._num_refused[skill]} rows correctly; "
                "they are asked for no more of them, and the student learns its own completions there; if the verifier "
                "does not give 1 to a correct answer, use one that does",
                stacklevel=2,
            )
