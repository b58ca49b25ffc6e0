"""The gate: a teacher teaches on a prompt only if it answers that prompt correctly.

A teacher that is correct on two thirds of a skill is wrong on the other third with the same confidence, and a student
that imitates it there learns its mistakes. So each teacher answers a prompt greedily, once, before it may teach on it,
and the verifier judges the answer. That costs one forward per prompt and teacher (`teacher_answers.py`), or one
generation where the gold answer does not decide it, and saves the teacher's forward over the prompt's completions where
its answer is wrong.

Where all of a teacher's latest answers on a level of a skill had one verdict, the next ones are assumed to have it too,
and the teacher answers new prompts of that level in some rollouts only.

A teacher can be correct when greedy and still spread its probability over wrong answers; a student that matches its
distribution becomes as uncertain. For a controller that requires it, the teacher therefore answers some of the open
prompts a second time, by sampling. The share of correct second answers estimates how far the teacher can take the
student.

Shapes: B completions of this process, K teachers.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rld.errors import NonFiniteError, TeacherDown, TeacherError
from rld.models.logprob_source import LogprobSource
from rld.models.prompting import PromptEncoder
from rld.models.sampling import SeededSampling
from rld.rollout.teacher_answers import TeacherAnswers, Verdict
from rld.rollout.verifier import Verify, answer_and_verify, is_success
from rld.teachers.teacher import Teacher
from rld.types import DEFAULT_SKILL, Event, Row
from rld.utils.files import read_json, write_json
from rld.utils.flops import forward_flops

_MAX_VERDICTS = 100_000
"""Verdicts of one teacher that are remembered; with more, all are forgotten."""

_FIRST_RESAMPLED = 32
"""Prompts of a skill that a teacher answers a second time as soon as they are open."""

_SAME_VERDICTS = 128
"""Equal verdicts in a row on a level of a skill after which a verdict is assumed. Of a teacher for which more than 2.4%
of the verdicts are other ones, so many are equal with a probability of at most 5%."""

_ASK_EVERY = 16
"""One of so many rollouts has second answers after the first ones, and answers where verdicts are assumed elsewhere."""

_MAX_FAILURES = 64
"""Prompts that a teacher fails from the start on, without one success, before a warning doubts the verifier."""


class GateVerdict(NamedTuple):
    """What the gate decides about a rollout, and the cost of the answers."""

    open_BK: Tensor
    """Which teachers may teach on which completions, bool."""
    resampled_BK: Tensor
    """Which teachers gave a second, sampled answer, bool; at the first completion of each prompt."""
    resampled_correct_BK: Tensor
    """Which of these answers are correct, bool."""
    num_tokens: int
    """Tokens of the prompts that teachers of this process answered, and of their answers."""
    flops: float
    """Operations of these answers."""


class Gate(Protocol):
    """A gate, which a checkpoint keeps."""

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
        self._verdicts: list[dict[str, bool]] = [{} for _ in self.teachers]
        """For each teacher, whether it answered a prompt correctly, by the prompt's key."""
        self._failures = {str(teacher.name): 0 for teacher in self.teachers}
        """Prompts that a teacher failed before its first success; -1 after that success, or after the warning."""
        self._resampled: dict[str, dict[str, int]] = {str(teacher.name): {} for teacher in self.teachers}
        """By teacher and skill, the prompts that were answered a second time, over all processes."""
        self._golds: dict[str, dict[str, list[int]]] = {str(teacher.name): {} for teacher in self.teachers}
        """By teacher and skill, its greedy answers with the tokens of the gold answer, and all others."""
        self._same: dict[str, dict[str, int]] = {str(teacher.name): {} for teacher in self.teachers}
        """By teacher and level of a skill, its latest verdicts that are equal: so many correct answers, or with a minus
        so many wrong ones."""
        self._num_rollouts = 0

    def judge(self, rows: Sequence[Row], needed_BK: Tensor) -> GateVerdict:
        """Decide which teachers may teach on which completions; prompts without a verdict are answered first.

        Args:
            rows: The row of each completion, with its `prompt` and the columns that the verifier reads.
            needed_BK: Which teachers would teach on which completions; the others are not open.

        Raises:
            TeacherDown: a teacher that is not optional does not answer.
            TeacherError: a teacher's logits are NaN.
        """
        self._num_rollouts += 1
        keys = [_prompt_key(row) for row in rows]
        open_BK = torch.zeros(needed_BK.shape, dtype=torch.bool)
        resampled_BK, resampled_correct_BK = torch.zeros_like(open_BK), torch.zeros_like(open_BK)
        num_tokens, flops = 0, 0.0
        for k, (teacher, is_needed_B) in enumerate(zip(self.teachers, needed_BK.cpu().T.tolist(), strict=True)):
            needed = {key: row for key, row, is_needed in zip(keys, rows, is_needed_B, strict=True) if is_needed}
            assumed = self._assumed(k, needed)
            num_teacher_tokens, second = self._answer_new(k, {key: needed[key] for key in needed if key not in assumed})
            for key, is_correct in second.items():
                resampled_BK[keys.index(key), k], resampled_correct_BK[keys.index(key), k] = True, is_correct
            verdicts = self._verdicts[k] | assumed
            open_BK[:, k] = torch.tensor([key in needed and verdicts.get(key, False) for key in keys])
            num_tokens += num_teacher_tokens
            flops += forward_flops(teacher.num_parameters(), num_teacher_tokens)
        device = needed_BK.device
        return GateVerdict(
            open_BK.to(device), resampled_BK.to(device), resampled_correct_BK.to(device), num_tokens, flops
        )

    def add_resampled(self, skills: Sequence[str], counts_SK: Tensor) -> None:
        """Add the prompts of a rollout that were answered a second time, over all processes."""
        for k, teacher in enumerate(self.teachers):
            resampled = self._resampled[str(teacher.name)]
            for skill, number in zip(skills, counts_SK[:, k].tolist(), strict=True):
                resampled[skill] = resampled.get(skill, 0) + int(number)

    def forget(self, k: int) -> None:
        """Forget what is known of teacher k, because its weights have changed."""
        name = str(self.teachers[k].name)
        for remembered in (self._verdicts[k], self._resampled[name], self._golds[name], self._same[name]):
            remembered.clear()

    def save(self, path: Path) -> None:
        """Write what this process remembers."""
        state = {
            "verdicts": {str(t.name): verdicts for t, verdicts in zip(self.teachers, self._verdicts, strict=True)},
            "failures": self._failures,
            "resampled": self._resampled,
            "golds": self._golds,
            "same": self._same,
            "rollouts": self._num_rollouts,
        }
        write_json(path, state)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; a process that has no file starts without verdicts."""
        if path.is_file():
            state = read_json(path)
            self._verdicts = [state["verdicts"].get(str(t.name), {}) for t in self.teachers]
            self._failures = {name: state["failures"].get(name, 0) for name in self._failures}
            self._resampled = {name: state["resampled"].get(name, {}) for name in self._resampled}
            self._golds = {name: state["golds"].get(name, {}) for name in self._golds}
            self._same = {name: state["same"].get(name, {}) for name in self._same}
            self._num_rollouts = state["rollouts"]

    def _assumed(self, k: int, needed: Mapping[str, Row]) -> dict[str, bool]:
        """Return the verdicts on prompts of teacher k that are assumed in this rollout."""
        if self._num_rollouts % _ASK_EVERY == 0:
            return {}
        same = self._same[str(self.teachers[k].name)]
        numbers = {key: same.get(_level(row), 0) for key, row in needed.items() if key not in self._verdicts[k]}
        return {key: number > 0 for key, number in numbers.items() if abs(number) >= _SAME_VERDICTS}

    def _answer_new(self, k: int, needed: Mapping[str, Row]) -> tuple[int, dict[str, bool]]:
        """Let teacher k answer the prompts that have no verdict yet, and some open ones a second time.

        Returns:
            Tokens that it read and wrote; and by prompt, whether its second answer is correct.
        """
        teacher, verdicts = self.teachers[k], self._verdicts[k]
        if len(verdicts) > _MAX_VERDICTS:
            verdicts.clear()
        new = {key: row for key, row in needed.items() if key not in verdicts}
        if not new or teacher.is_down:  # a teacher that is down says nothing about the prompts
            return 0, {}
        rows = list(new.values())
        try:
            with teacher.answering(self.device) as model:
                if isinstance(model, LogprobSource):
                    return self._ask_source(k, model, new), {}
                answers = TeacherAnswers(
                    model,
                    teacher.prompt_encoder(self.encoder),
                    rows,
                    [self._has_draft(teacher, row) for row in rows],
                    verify=self.verify,
                    max_new_tokens=self.max_new_tokens,
                    name=f"teacher '{teacher.name}'",
                )
                greedy = answers.verdicts(range(len(rows)))
                self._remember(k, new, [verdict.is_correct for verdict in greedy])
                self._count_golds(teacher, rows, greedy)
                second = self._answer_again(k, new, answers)
        except TeacherDown:
            if not teacher.optional:
                raise
            teacher.is_down = True
            return 0, {}
        except NonFiniteError as error:  # of a teacher: the training has not diverged
            raise TeacherError(str(error)) from error
        return answers.num_tokens, second

    def _ask_source(self, k: int, source: LogprobSource, new: Mapping[str, Row]) -> int:
        """Let a log-probability source answer; return the tokens of prompts and answers."""
        teacher = self.teachers[k]
        encoder, name = teacher.prompt_encoder(self.encoder), f"teacher '{teacher.name}'"
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "alone": True, "name": name}
        answers = answer_and_verify(source, encoder, list(new.values()), self.verify, **options)
        self._remember(k, new, [None if reward is None else is_success(reward) for reward in answers.rewards])
        return answers.num_tokens

    def _remember(self, k: int, new: Mapping[str, Row], correct: Sequence[bool | None]) -> None:
        """Keep verdicts. Where the verifier does not apply, the teacher is trusted, as without a gate."""
        trusted = [is_correct is None or is_correct for is_correct in correct]
        self._warn_of_failures(self.teachers[k], trusted)
        self._verdicts[k].update(zip(new, trusted, strict=True))
        same = self._same[str(self.teachers[k].name)]
        for row, is_correct in zip(new.values(), trusted, strict=True):
            number = same.get(_level(row), 0)
            same[_level(row)] = max(number, 0) + 1 if is_correct else min(number, 0) - 1

    def _has_draft(self, teacher: Teacher, row: Row) -> bool:
        """Tell whether the gold answer is a likely draft of a teacher's: one forward more is lost where it is not."""
        if not isinstance(row.get("answer"), str):
            return False
        if getattr(self.verify, "rejects_beginning", None) is not None:  # an answer that differs is seldom decoded
            return True
        num_gold, num_other = self._golds[str(teacher.name)].get(_skill(row), [0, 0])
        return num_gold >= num_other

    def _count_golds(self, teacher: Teacher, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> None:
        counts = self._golds[str(teacher.name)]
        for row, verdict in zip(rows, verdicts, strict=True):
            counts.setdefault(_skill(row), [0, 0])[0 if verdict.is_gold else 1] += 1

    def _answer_again(self, k: int, new: Mapping[str, Row], answers: TeacherAnswers) -> dict[str, bool]:
        """Sample a second answer to some of the prompts that teacher k answered correctly.

        Returns:
            By prompt, whether it is correct.
        """
        teacher, verdicts = self.teachers[k], self._verdicts[k]
        resampled = self._choose_resampled(teacher, {key: row for key, row in new.items() if verdicts[key]})
        if not resampled:
            return {}
        assert self.resampling_temperature is not None
        numbers = [i for i, key in enumerate(new) if key in resampled]  # in the same order
        sampling = SeededSampling(0, self.resampling_temperature)
        second = dict(zip(resampled, answers.verdicts(numbers, sampling), strict=True))
        for key, row in resampled.items():
            # No count over all processes will have it, and the skill should not be asked for ever.
            if second[key].is_correct is None:
                self._resampled[str(teacher.name)][_skill(row)] = self._num_resampled(teacher, row) + 1
        return {key: verdict.is_correct for key, verdict in second.items() if verdict.is_correct is not None}

    def _choose_resampled(self, teacher: Teacher, correct: Mapping[str, Row]) -> Mapping[str, Row]:
        """Choose the prompts that a teacher answers a second time from those that it answered correctly."""
        if self.resampling_temperature is None:
            return {}
        if self._num_rollouts % _ASK_EVERY == 0:
            return correct
        return {key: row for key, row in correct.items() if self._num_resampled(teacher, row) < _FIRST_RESAMPLED}

    def _num_resampled(self, teacher: Teacher, row: Row) -> int:
        return self._resampled[str(teacher.name)].get(_skill(row), 0)

    def _warn_of_failures(self, teacher: Teacher, correct: Sequence[bool]) -> None:
        before = self._failures[str(teacher.name)]
        if before < 0:
            return
        failures = -1 if any(correct) else before + len(correct)
        if failures >= _MAX_FAILURES:
            warnings.warn(
                f"teacher '{teacher.name}' answered none of its first {failures} prompts correctly, so it has taught "
                "nothing; if the first reward, or the audit's, does not give 1 to a correct answer, use one that does, "
                "or set gate to off",
                stacklevel=2,
            )
            failures = -1
        self._failures[str(teacher.name)] = failures


def unverified(teachers: Sequence[Teacher], gate: Gate | None) -> list[Event]:
    """Return an event for teachers whose answers are not verified; none where a gate verifies them."""
    if gate is not None or not teachers:
        return []
    measured = "their answers to training prompts are not verified"
    rule = "without a gate the student learns wrong answers of a teacher too"
    return [Event(1, "no gate", "all skills", ", ".join(str(t.name) for t in teachers), measured, rule)]


def _skill(row: Row) -> str:
    return str(row.get("skill", DEFAULT_SKILL))


def _level(row: Row) -> str:
    return f"{_skill(row)} {row.get('level', 0)}"


def _prompt_key(row: Row) -> str:
    """Return a key of a row's prompt and of what makes an answer to it correct."""
    identity = json.dumps([row.get(name) for name in ("prompt", "answer", "entry")], sort_keys=True, default=repr)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
