"""Who may teach on which prompt: a teacher that was seen to answer it rightly.

A teacher that is right on two thirds of a skill is wrong on the other third with the same confidence, and a student
that follows it there learns its mistakes for good. So each teacher answers a prompt once, greedily, before it may teach
on it, and the run's verifier decides. That costs one generation per prompt and teacher, and saves a forward over the
whole group where the teacher fails.

A teacher may be right at its greediest and unsure of it, and a student that learns its whole distribution becomes as
unsure. So for a controller that `needs` it some of the open prompts are asked once more, for a sampled answer: how
often that is right as well is how far the teacher can take the student.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rld.errors import TeacherDown
from rld.models import generation
from rld.models.prompting import PromptEncoder
from rld.rollout.verifier import Verify, ask, is_success
from rld.teachers.teacher import Teacher
from rld.types import DEFAULT_SKILL, Event
from rld.utils.files import read_json, write_json

_REMEMBERED = 100_000
"""Prompts whose verdicts are kept."""

_SAMPLED, _EVERY = 32, 16
"""Prompts of a skill on which a teacher is asked once more as soon as there are any; and the rollouts of which it is
asked in one after that."""

_SUSPICIOUS = 64
"""Failures in a row from the start after which the verifier is doubted."""


class TeacherGate:
    """Remembers which prompts each teacher answers rightly.

    Args:
        teachers: The teachers.
        encoder: Encodes prompts for the student, and for the teachers that are not aligned.
        verify: A reward with TRL's signature that gives 1 to a right answer and None where it doesn't apply.
        max_new_tokens: Length of an answer.
        device: Where teachers answer.
        again_at: Temperature of second answers, the rollout's. None: nobody is asked for any.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        encoder: PromptEncoder,
        verify: Verify,
        max_new_tokens: int,
        device: torch.device,
        again_at: float | None = None,
    ) -> None:
        self.teachers, self.encoder, self.verify = list(teachers), encoder, verify
        self.max_new_tokens, self.device = max_new_tokens, device
        self.flops = 0.0
        """Operations of this process's answers so far."""
        self.num_tokens = 0
        """Tokens of these, prompts included."""
        self._failed = {str(teacher.name): 0 for teacher in self.teachers}
        """Prompts that each teacher failed before its first right answer; -1 after that, or once it was told."""
        self._verdicts: list[dict[str, bool]] = [{} for _ in self.teachers]
        self._again_at = again_at
        self._again: dict[str, dict[str, int]] = {str(teacher.name): {} for teacher in self.teachers}
        """By teacher and skill the prompts that were asked once more, over all processes."""
        self._calls = 0
        self.again_BK2 = torch.zeros(0, len(self.teachers), 2)
        """Of the rows that were opened last, whether a teacher was asked once more, and whether it was right again; at
        the first row of each prompt."""

    @classmethod
    def of(
        cls,
        teachers: Sequence[Teacher],
        encoder: PromptEncoder,
        verify: Verify | None,
        max_new_tokens: int,
        accelerator: Accelerator,
        again_at: float | None,
    ) -> TeacherGate | None:
        """Return a gate, or with a warning None where no reward can be asked."""
        if verify is None:
            warnings.warn("the first reward can't be asked about teachers' answers, so gate is skill", stacklevel=4)
            return None
        return cls(teachers, encoder, verify, max_new_tokens, accelerator.device, again_at)

    def open(self, rows: Sequence[dict[str, Any]], wanted_BK: Tensor) -> Tensor:
        """Which teachers may teach on which rows, `[B, K]` bool.

        Args:
            rows: The rows, with their `prompt` and the columns that the verifier reads. Those of other processes are
                theirs to ask about.
            wanted_BK: The teachers that are asked for; the others get False.
        """
        keys = [_key(row) for row in rows]
        opened_BK = torch.zeros(wanted_BK.shape, dtype=torch.bool)
        self.again_BK2 = torch.zeros(*wanted_BK.shape, 2, device=wanted_BK.device)
        self._calls += 1
        for k, asked_B in enumerate(wanted_BK.cpu().T.tolist()):
            verdicts = self._verdicts[k]
            if len(verdicts) > _REMEMBERED:
                verdicts.clear()
            asked = {key: row for key, row, wanted in zip(keys, rows, asked_B, strict=True) if wanted}
            new = {key: row for key, row in asked.items() if key not in verdicts}
            if new:
                found = self._verdict(self.teachers[k], list(new.values()))
                verdicts.update({} if found is None else zip(new, found, strict=True))
                right = {key: row for key, row in new.items() if verdicts.get(key)}
                for key, is_right in self._ask_again(self.teachers[k], right).items():
                    self.again_BK2[keys.index(key), k] = torch.tensor([1.0, is_right])
            opened_BK[:, k] = torch.tensor([key in asked and verdicts.get(key, False) for key in keys])
        return opened_BK.to(wanted_BK.device)

    def count_again(self, skills: Sequence[str], counts_SK: Tensor) -> None:
        """Add the prompts that teachers were asked once more over all processes, which know of it alike."""
        for k, teacher in enumerate(self.teachers):
            known = self._again[str(teacher.name)]
            for skill, number in zip(skills, counts_SK[:, k].tolist(), strict=True):
                known[skill] = known.get(skill, 0) + int(number)

    def forget(self, k: int) -> None:
        """Ask teacher k anew, whose weights have changed."""
        self._verdicts[k].clear()
        self._again[str(self.teachers[k].name)].clear()

    def save(self, path: Path) -> None:
        """Write what this process remembers."""
        verdicts = {str(t.name): known for t, known in zip(self.teachers, self._verdicts, strict=True)}
        asked_again = {"again": self._again, "calls": self._calls}
        write_json(path, {"verdicts": verdicts, "failed": self._failed, **asked_again})

    def load(self, path: Path) -> None:
        """Remember what `save` wrote; a process that wasn't there asks anew."""
        if path.is_file():
            saved = read_json(path)
            self._verdicts = [saved["verdicts"].get(str(t.name), {}) for t in self.teachers]
            self._failed = {name: saved["failed"].get(name, 0) for name in self._failed}
            self._again = {name: saved["again"].get(name, {}) for name in self._again}
            self._calls = saved["calls"]

    def _verdict(self, teacher: Teacher, rows: list[dict[str, Any]]) -> list[bool] | None:
        """Whether a teacher answers each row rightly; None if it is down, which says nothing of the rows."""
        if teacher.is_down:
            return None
        encoder = teacher.prompt_encoder(self.encoder)
        try:
            with teacher.answering(self.device) as model:
                texts = generation.generate(model, encoder, rows, max_new_tokens=self.max_new_tokens, alone=True)
        except TeacherDown:
            if not teacher.optional:
                raise
            teacher.is_down = True
            return None
        # Where the verifier has no say, the teacher is taken on trust, as without a gate.
        verdicts = [credit is None or is_success(credit) for credit in self._credits(teacher, rows, texts)]
        self._warn_of_silence(teacher, verdicts)
        return verdicts

    def _credits(self, teacher: Teacher, rows: list[dict[str, Any]], texts: list[str]) -> list[float | None]:
        """What the verifier gives to a teacher's answers, whose cost is counted in."""
        encoder = teacher.prompt_encoder(self.encoder)
        ids = [encoder.encode_answer(text) for text in texts]
        num_tokens = encoder.count_tokens(rows, ids)
        self.num_tokens += num_tokens
        self.flops += 2.0 * teacher.num_parameters() * num_tokens
        return ask(self.verify, rows, texts, ids)

    def _ask_again(self, teacher: Teacher, right: Mapping[str, dict[str, Any]]) -> dict[str, bool]:
        """Of prompts that a teacher answered rightly, some that it answers once more, and whether rightly again."""
        if self._again_at is None or teacher.source is not None:  # which samples nothing
            return {}
        known, is_due = self._again[str(teacher.name)], self._calls % _EVERY == 0
        asked = {
            key: row
            for key, row in right.items()
            if is_due or known.get(str(row.get("skill", DEFAULT_SKILL)), 0) < _SAMPLED
        }
        if not asked:
            return {}
        rows = list(asked.values())
        encoder = teacher.prompt_encoder(self.encoder)
        prompts = [encoder.encode(row["prompt"]) for row in rows]
        with teacher.running(self.device) as model:
            answers = generation.sample(
                model,
                encoder.tokenizer,
                prompts,
                max_new_tokens=self.max_new_tokens,
                seed=0,
                temperature=self._again_at,
            )
        credits = self._credits(teacher, rows, encoder.decode(answers))
        for row, credit in zip(rows, credits, strict=True):
            if credit is None:  # nothing is learnt of this skill by asking more
                skill = str(row.get("skill", DEFAULT_SKILL))
                known[skill] = known.get(skill, 0) + 1
        return {key: is_success(credit) for key, credit in zip(asked, credits, strict=True) if credit is not None}

    def _warn_of_silence(self, teacher: Teacher, verdicts: list[bool]) -> None:
        failed = self._failed[str(teacher.name)]
        self._failed[str(teacher.name)] = -1 if failed < 0 or any(verdicts) else failed + len(verdicts)
        if failed >= 0 and self._failed[str(teacher.name)] >= _SUSPICIOUS:
            self._failed[str(teacher.name)] = -1
            warnings.warn(
                f"teacher '{teacher.name}' answered none of its first {failed + len(verdicts)} prompts rightly, so it "
                "has taught nothing; if the first reward, or the audit's, doesn't give 1 to a right "
                "answer, take one that does, or set gate to skill",
                stacklevel=2,
            )


def unverified(teachers: Sequence[Teacher], gate: TeacherGate | None) -> list[Event]:
    """What is to be told of teachers whose answers nobody checks."""
    if gate is not None or not teachers:
        return []
    measured = "no answer of theirs to a training prompt"
    rule = "no gate per prompt: a teacher's errors are learnt as well, so guarantees are weaker"
    return [Event(1, "gate open", "all skills", ", ".join(str(t.name) for t in teachers), measured, rule)]


def _key(row: dict[str, Any]) -> str:
    # the same question may be asked with another answer in mind
    told = json.dumps([row.get(name) for name in ("prompt", "answer", "entry")], sort_keys=True, default=repr)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
