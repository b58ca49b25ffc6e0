"""Who may teach on which prompt: a teacher that was seen to answer it rightly.

A teacher that is right on two thirds of a skill is wrong on the other third with the same confidence, and a student
that follows it there learns its mistakes for good. So each teacher answers a prompt once, greedily, before it may teach
on it, and the run's verifier decides. That costs one generation per prompt and teacher, and saves a forward over the
whole group where the teacher fails.
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
from transformers import PreTrainedTokenizerBase

from rld import evaluation
from rld.checkpoint import read_json, write_json
from rld.errors import TeacherDown
from rld.rollout import Verify, ask, is_success
from rld.teachers import Teacher
from rld.types import Event

_REMEMBERED = 100_000
"""Prompts whose verdicts are kept."""

_SUSPICIOUS = 64
"""Failures in a row from the start after which the verifier is doubted."""


class Gate:
    """Remembers which prompts each teacher answers rightly.

    Args:
        teachers: The teachers.
        student: The student's tokenizer, which those read that are not aligned.
        verify: A reward with TRL's signature that gives 1 to a right answer and None where it doesn't apply.
        max_new_tokens: Length of an answer.
        device: Where teachers answer.
        chat_options: What else chat templates are given.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        student: PreTrainedTokenizerBase,
        verify: Verify,
        max_new_tokens: int,
        device: torch.device,
        chat_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.teachers, self.student, self.verify = list(teachers), student, verify
        self.max_new_tokens, self.device, self.chat_options = max_new_tokens, device, dict(chat_options or {})
        self.flops = 0.0
        """Operations of this process's answers so far."""
        self.num_tokens = 0
        """Tokens of these, prompts included."""
        self._failed = {str(teacher.name): 0 for teacher in self.teachers}
        """Prompts that each teacher failed before its first right answer; -1 after that, or once it was told."""
        self._verdicts: list[dict[str, bool]] = [{} for _ in self.teachers]

    @classmethod
    def of(
        cls,
        teachers: Sequence[Teacher],
        student: PreTrainedTokenizerBase,
        verify: Verify | None,
        max_new_tokens: int,
        accelerator: Accelerator,
        chat_options: Mapping[str, Any],
    ) -> Gate | None:
        """Return a gate, or with a warning None where no reward can be asked."""
        if verify is None:
            warnings.warn("the first reward can't be asked about teachers' answers, so gate is skill", stacklevel=4)
            return None
        return cls(teachers, student, verify, max_new_tokens, accelerator.device, chat_options)

    def open(self, rows: Sequence[dict[str, Any]], wanted_BK: Tensor) -> Tensor:
        """Which teachers may teach on which rows, `[B, K]` bool.

        Args:
            rows: The rows, with their `prompt` and the columns that the verifier reads. Those of other processes are
                theirs to ask about.
            wanted_BK: The teachers that are asked for; the others get False.
        """
        keys = [_key(row) for row in rows]
        opened_BK = torch.zeros(wanted_BK.shape, dtype=torch.bool)
        for k, asked_B in enumerate(wanted_BK.cpu().T.tolist()):
            verdicts = self._verdicts[k]
            if len(verdicts) > _REMEMBERED:
                verdicts.clear()
            asked = {key: row for key, row, wanted in zip(keys, rows, asked_B, strict=True) if wanted}
            new = {key: row for key, row in asked.items() if key not in verdicts}
            if new:
                found = self._verdict(self.teachers[k], list(new.values()))
                verdicts.update({} if found is None else zip(new, found, strict=True))
            opened_BK[:, k] = torch.tensor([key in asked and verdicts.get(key, False) for key in keys])
        return opened_BK.to(wanted_BK.device)

    def forget(self, k: int) -> None:
        """Ask teacher k anew, whose weights have changed."""
        self._verdicts[k].clear()

    def save(self, path: Path) -> None:
        """Write what this process remembers."""
        verdicts = {str(t.name): known for t, known in zip(self.teachers, self._verdicts, strict=True)}
        write_json(path, {"verdicts": verdicts, "failed": self._failed})

    def load(self, path: Path) -> None:
        """Remember what `save` wrote; a process that wasn't there asks anew."""
        if path.is_file():
            saved = read_json(path)
            self._verdicts = [saved["verdicts"].get(str(t.name), {}) for t in self.teachers]
            self._failed = {name: saved["failed"].get(name, 0) for name in self._failed}

    def _verdict(self, teacher: Teacher, rows: list[dict[str, Any]]) -> list[bool] | None:
        """Whether a teacher answers each row rightly; None if it is down, which says nothing of the rows."""
        if teacher.is_down:
            return None
        tokenizer, template = (teacher.tokenizer, teacher.chat_template) if teacher.align else (self.student, None)
        assert tokenizer is not None  # the panel has found it
        options = self.chat_options | {"chat_template": template}
        try:
            with teacher.answering(self.device) as model:
                asked = model, tokenizer, rows, self.max_new_tokens
                texts = evaluation.generate(*asked, alone=True, chat_options=options)
        except TeacherDown:
            if not teacher.optional:
                raise
            teacher.is_down = True
            return None
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        num_tokens = evaluation.num_tokens(tokenizer, rows, ids, options)
        self.num_tokens += num_tokens
        self.flops += 2.0 * teacher.num_parameters() * num_tokens
        credits = ask(self.verify, rows, texts, ids)
        # Where the verifier has no say, the teacher is taken on trust, as without a gate.
        verdicts = [credit is None or is_success(credit) for credit in credits]
        self._warn_of_silence(teacher, verdicts)
        return verdicts

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


def unverified(teachers: Sequence[Teacher], gate: Gate | None) -> list[Event]:
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
