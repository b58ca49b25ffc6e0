"""The student as its own teacher, with a prompt that tells it more (on-policy self-distillation)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.models.heads import LMHead
from rld.models.self_check import evaluating
from rld.teachers.teacher import Teacher


class SelfTeacher(Teacher):
    """The student with its present weights, without gradient and dropout, as a teacher that reads a prompt of its own.

    It has no weights beside the student's, an adapter's included, and changes with them: nothing that it says is
    remembered from one rollout to the next.

    Args:
        prompt: Its prompt: a template with `{question}` and `{answer}`, as in `Teacher`.
        name: Its name in metrics and errors.
        skills: The skills that it teaches. None: all.
        verified: As in `Teacher`.
    """

    def __init__(
        self,
        prompt: str,
        name: str = "self",
        skills: Sequence[str] | None = None,
        verified: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__("student", name, skills, verified or {}, prompt=prompt)

    @property
    def is_student(self) -> bool:
        return True

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Teach with a student.

        Args:
            model: The student without wrappers.
            tokenizer: Its tokenizer.
        """
        self.model, self.tokenizer = model, tokenizer

    def load(self) -> PreTrainedModel:
        if isinstance(self.model, str):
            raise self._error("it has no student yet; the trainer gives it one")
        return self._unwrapped(self.load_base())

    @contextmanager
    def running(self, device: torch.device) -> Iterator[PreTrainedModel]:
        model = self.load()
        with evaluating(model):
            yield model

    def head(self, device: torch.device) -> LMHead:
        return LMHead.of(self.load()).detach()

    def num_parameters(self) -> int:
        return self.load().num_parameters()

    def fingerprint(self) -> str:
        """Return the same for all weights: a checkpoint has those of the student."""
        return "the student"

    def swap(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        raise self._error("it is the student, so it can't become another model")
