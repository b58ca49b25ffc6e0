"""The gate: a teacher teaches on a prompt only if it answers that prompt correctly.

A teacher that is correct on two thirds of a skill is wrong on the other third with the same confidence, and a student
that imitates it there learns its mistakes. So each teacher answers a prompt greedily, once, before it may teach on it,
and the verifier judges the answer. The teacher reads the gold answer as a draft (`teacher_answers.py`), and answers are
decoded only where the draft does not decide them. A teacher with a prompt of its own answers that one. Where the prompt
shows an attempt, it is that of the first completion of the prompt for which all is there that it shows.

A teacher that is asked first reads the prompt twice where it may teach: with the draft, and with the completions. One
that is likely to be correct is therefore asked while it scores: the draft is one more completion of the prompt. If its
answer is wrong, it has scored for nothing.

Where so many of a teacher's latest answers on a level of a skill had one verdict that another one is unlikely, the next
ones are assumed to have it too, and the teacher answers a share of the new prompts of that level only.

Of a student that is its own teacher no verdict is remembered or assumed, because its weights change; nor of a teacher
that reads attempts, because these do.

A teacher can be correct when greedy and still spread its probability over wrong answers; a student that matches its
distribution becomes as uncertain. For a controller that requires it, the teacher therefore answers some of the open
prompts a second time, by sampling. The share of correct second answers estimates how far the teacher can take the
student.

Shapes: B completions of this process, K teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object
from torch import Tensor

from rld.errors import TeacherDown
from rld.models.logprob_source import LogprobSource
from rld.models.prompting import PromptEncoder
from rld.models.sampling import SeededSampling
from rld.rollout.gate_memory import GateMemory, Judgement, News, SecondAnswer, level_of
from rld.rollout.gate_questions import GateQuestions, GateVerdict, ScoringForwards, TeacherQuestions
from rld.rollout.row_keys import row_keys
from rld.rollout.teacher_answers import TeacherAnswers
from rld.rollout.verifier import Verify, answer_and_verify, is_success
from rld.teachers.output_checks import errors_of_a_teacher
from rld.teachers.teacher import Teacher
from rld.types import Event, Row, skill_of
from rld.utils.files import read_json, write_json

_FIRST_RESAMPLED = 32
"""Prompts of a skill that a teacher answers a second time as soon as they are open."""

_ASK_EVERY = 16
"""One of so many rollouts has second answers after the first ones."""


class Gate(Protocol):
    """A gate, which a checkpoint keeps. Every process has the same."""

    def forget(self, k: int) -> None: ...

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


class TeacherGate:
    """Lets teachers answer prompts, and remembers the verdicts.

    Args:
        teachers: The teachers.
        encoder: Encodes prompts for the student, and for the teachers that are not aligned.
        verify: A reward with TRL's signature that gives 1 to a correct answer and None where it does not apply.
        max_new_tokens: Greatest length of an answer.
        device: Where teachers answer.
        resampling_temperature: Temperature of second answers. None: there are none.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        encoder: PromptEncoder,
        verify: Verify,
        *,
        max_new_tokens: int,
        device: torch.device,
        resampling_temperature: float | None = None,
    ) -> None:
        self.teachers, self.encoder, self.verify = list(teachers), encoder, verify
        self.max_new_tokens, self.device = max_new_tokens, device
        self.resampling_temperature = resampling_temperature
        self.memories = [GateMemory(str(teacher.name)) for teacher in self.teachers]
        self._num_rollouts = 0

    def ask(
        self,
        rows: Sequence[Row],
        needed_BK: Tensor,
        forwards: ScoringForwards | None = None,
        rows_KB: Sequence[Sequence[Row]] | None = None,
    ) -> GateQuestions:
        """Let teachers answer prompts without a verdict, but for those whose drafts are read while they score.

        Args:
            rows: The row of each completion, with its `prompt` and the columns that the verifier reads.
            needed_BK: Which teachers would teach on which completions; the others are not open.
            forwards: The forwards that will score the completions. None: no draft is read in them.
            rows_KB: The rows by which each teacher is asked, the same for all completions of a prompt. None: `rows`.

        Raises:
            TeacherDown: a teacher that is not optional does not answer.
            TeacherError: a teacher's logits are NaN.
        """
        self._num_rollouts += 1
        for teacher, memory in zip(self.teachers, self.memories, strict=True):
            if teacher.is_student or teacher.reads_attempts:
                memory.forget_verdicts()
        keys = row_keys(rows)
        sizes = {} if forwards is None else forwards.sizes(keys)
        open_BK, teachers = torch.zeros(needed_BK.shape, dtype=torch.bool), []
        for k, (memory, is_needed_B) in enumerate(zip(self.memories, needed_BK.cpu().T.tolist(), strict=True)):
            rows_B = rows if rows_KB is None else rows_KB[k]
            rows_by_key = {key: row for key, row, is_needed in zip(keys, rows_B, is_needed_B, strict=True) if is_needed}
            questions = TeacherQuestions(rows_by_key, memory.assumed(rows_by_key))
            new = [key for key in rows_by_key if key not in memory.verdicts and key not in questions.assumed]
            if forwards is not None and forwards.takes_drafts_K[k]:
                later_keys = [key for key in new if self._pays_later(memory, rows_by_key[key], *sizes[key])]
                self._ask_later(k, questions, later_keys)
            self._ask_first(k, questions, [key for key in new if key not in questions.later])
            may_be_open = self._verdicts(k, questions) | dict.fromkeys(questions.later, True)
            open_BK[:, k] = torch.tensor([may_be_open.get(key, False) for key in keys])
            teachers.append(questions)
        return GateQuestions(keys, teachers, open_BK.to(needed_BK.device))

    def decide(self, questions: GateQuestions, states: Mapping[int, Sequence[Tensor]]) -> GateVerdict:
        """Decide which teachers may teach on which completions, and remember it.

        All processes call it, because each learns the verdicts of all.

        Args:
            questions: What `ask` returned.
            states: By the teacher's number, for each draft the last hidden states that predict its tokens. A teacher
                that has read none reads its drafts now.

        Raises:
            TeacherError: a teacher's logits are NaN.
        """
        open_BK = torch.zeros(questions.open_BK.shape, dtype=torch.bool)
        assumed_BK, has_answer_BK = torch.zeros_like(open_BK), torch.zeros_like(open_BK)
        for k, of_teacher in enumerate(questions.teachers):
            if of_teacher.waiting is not None:
                if k in states:
                    of_teacher.waiting.take_states(states[k])
                self._judge(k, of_teacher, of_teacher.later, of_teacher.waiting)
            verdicts = self._verdicts(k, of_teacher)
            open_BK[:, k] = torch.tensor([verdicts.get(key, False) for key in questions.keys])
            assumed_BK[:, k] = torch.tensor([key in of_teacher.assumed for key in questions.keys])
            has_answer_BK[:, k] = torch.tensor([key in verdicts for key in questions.keys]) & ~assumed_BK[:, k]
        device = questions.open_BK.device
        return GateVerdict(
            open_BK.to(device),
            assumed_BK.to(device),
            has_answer_BK.to(device),
            self._share(questions),
            tokens_K=[of_teacher.num_tokens for of_teacher in questions.teachers],
        )

    def forget(self, k: int) -> None:
        """Forget what is known of teacher k, because its weights have changed."""
        self.memories[k].forget()

    def save(self, path: Path) -> None:
        """Write what the gate remembers."""
        memories = {memory.name: memory.state() for memory in self.memories}
        write_json(path, {"teachers": memories, "rollouts": self._num_rollouts})

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; of a teacher that it does not name there are no verdicts."""
        state = read_json(path)
        for memory in self.memories:
            if memory.name in state["teachers"]:
                memory.restore(state["teachers"][memory.name])
        self._num_rollouts = state["rollouts"]

    def _pays_later(self, memory: GateMemory, row: Row, num_prompt: int, num_completion: int) -> bool:
        """Tell whether it costs less to read a prompt's draft while the teacher scores than before.

        With P tokens of the prompt, A of the draft, C of all completions and a probability p of a correct answer, the
        teacher reads P + A + p (P + C) tokens if it is asked before, and P + A + C if it is asked later.
        """
        p = memory.share_of_golds(skill_of(row))
        return 0 < num_completion < p * (num_prompt + num_completion) and self._has_draft(memory, row)

    def _has_draft(self, memory: GateMemory, row: Row) -> bool:
        """Tell whether the gold answer is a likely draft of a teacher's: one forward more is lost where it is not."""
        if not isinstance(row.get("answer"), str):
            return False
        if getattr(self.verify, "rejects_beginning", None) is not None:  # an answer that differs is seldom decoded
            return True
        return memory.share_of_golds(skill_of(row)) >= 0.5

    def _ask_later(self, k: int, questions: TeacherQuestions, keys: Sequence[str]) -> None:
        """Let teacher k answer those of the prompts while it scores whose drafts it can read."""
        if not keys:
            return
        answers = self._answers(k, questions, keys)
        questions.later = [keys[i] for i in answers.with_draft]
        if questions.later:
            questions.waiting = (
                answers if len(questions.later) == len(keys) else self._answers(k, questions, questions.later)
            )

    def _ask_first(self, k: int, questions: TeacherQuestions, keys: Sequence[str]) -> None:
        """Let teacher k answer prompts before it scores."""
        teacher = self.teachers[k]
        if not keys or teacher.is_down:  # a teacher that is down says nothing about the prompts
            return
        if teacher.source is None:
            self._judge(k, questions, keys, self._answers(k, questions, keys))
            return
        try:
            self._ask_source(k, questions, keys, teacher.source)
        except TeacherDown:
            if not teacher.optional:
                raise
            teacher.is_down = True

    def _answers(self, k: int, questions: TeacherQuestions, keys: Sequence[str]) -> TeacherAnswers:
        """Return teacher k's answers to prompts, before it has read their drafts."""
        teacher = self.teachers[k]
        rows = [teacher.own_row(questions.rows[key]) for key in keys]
        return TeacherAnswers(
            teacher.load(),
            teacher.prompt_encoder(self.encoder),
            rows,
            [self._has_draft(self.memories[k], row) for row in rows],
            verify=self.verify,
            max_new_tokens=self.max_new_tokens,
            name=f"teacher '{teacher.name}'",
        )

    def _judge(self, k: int, questions: TeacherQuestions, keys: Sequence[str], answers: TeacherAnswers) -> None:
        """Note the verdicts on teacher k's answers to prompts, and on second answers to some that it may teach on."""
        with self.teachers[k].running(self.device), errors_of_a_teacher():
            verdicts = answers.verdicts(range(len(keys)))
            self._note(
                questions, keys, [verdict.is_correct for verdict in verdicts], [verdict.is_gold for verdict in verdicts]
            )
            self._answer_again(k, questions, keys, answers)
        questions.num_tokens += answers.num_tokens

    def _ask_source(self, k: int, questions: TeacherQuestions, keys: Sequence[str], source: LogprobSource) -> None:
        """Let a log-probability source answer prompts."""
        teacher = self.teachers[k]
        rows = [teacher.own_row(questions.rows[key]) for key in keys]
        encoder, name = teacher.prompt_encoder(self.encoder), f"teacher '{teacher.name}'"
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "alone": True, "name": name}
        with errors_of_a_teacher():
            answers = answer_and_verify(source, encoder, rows, self.verify, **options)
        correct = [None if reward is None else is_success(reward) for reward in answers.rewards]
        self._note(questions, keys, correct, [None] * len(keys))
        questions.num_tokens += answers.num_tokens

    def _note(
        self,
        questions: TeacherQuestions,
        keys: Sequence[str],
        correct: Sequence[bool | None],
        gold: Sequence[bool | None],
    ) -> None:
        """Note verdicts. Where the verifier does not apply, the teacher is trusted, as without a gate."""
        for key, is_correct, is_gold in zip(keys, correct, gold, strict=True):
            row = questions.rows[key]
            questions.judgements[key] = Judgement(
                key, skill_of(row), level_of(row), is_correct is None or is_correct, is_gold
            )

    def _answer_again(self, k: int, questions: TeacherQuestions, keys: Sequence[str], answers: TeacherAnswers) -> None:
        """Sample a second answer to some of the prompts that teacher k answered correctly."""
        numbers = [
            i
            for i, key in enumerate(keys)
            if questions.judgements[key].is_correct and self._is_resampled(k, questions.judgements[key])
        ]
        if not numbers:
            return
        assert self.resampling_temperature is not None
        sampling = SeededSampling(0, self.resampling_temperature)
        for i, verdict in zip(numbers, answers.verdicts(numbers, sampling), strict=True):
            questions.second[keys[i]] = verdict.is_correct

    def _is_resampled(self, k: int, judgement: Judgement) -> bool:
        """Tell whether teacher k answers a prompt a second time that it answered correctly."""
        if self.resampling_temperature is None:
            return False
        return (
            self._num_rollouts % _ASK_EVERY == 0
            or self.memories[k].resampled.get(judgement.skill, 0) < _FIRST_RESAMPLED
        )

    def _verdicts(self, k: int, questions: TeacherQuestions) -> dict[str, bool]:
        """Return the verdicts on teacher k, by the keys of the prompts that need one."""
        earlier = self.memories[k].verdicts
        verdicts = {key: earlier[key] for key in questions.rows if key in earlier}
        verdicts |= questions.assumed
        return verdicts | {key: judgement.is_correct for key, judgement in questions.judgements.items()}

    def _share(self, questions: GateQuestions) -> list[list[SecondAnswer]]:
        """Let all processes remember what each of them has learnt, and return all teachers' second answers."""
        own_news = [
            News(
                [of_teacher.judgements[key] for key in of_teacher.rows if key in of_teacher.judgements],
                of_teacher.second,
            )
            for of_teacher in questions.teachers
        ]
        return [memory.learn(news) for memory, *news in zip(self.memories, *gather_object([own_news]), strict=True)]


def unverified(teachers: Sequence[Teacher], gate: Gate | None) -> list[Event]:
    """Return an event for teachers whose answers are not verified; none where a gate verifies them."""
    if gate is not None or not teachers:
        return []
    measured = "their answers to training prompts are not verified"
    rule = "without a gate the student learns wrong answers of a teacher too"
    return [Event(1, "no gate", "all skills", ", ".join(str(t.name) for t in teachers), measured, rule)]
