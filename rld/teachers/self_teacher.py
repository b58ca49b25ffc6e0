"""The student as its own teacher, with a prompt that tells it more (on-policy self-distillation)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.models.heads import LMHead
from rld.models.self_check import evaluating
from rld.models.weight_average import WeightAverage
from rld.teachers.teacher import Teacher


class SelfTeacher(Teacher):
    """The student, without gradient and dropout, as a teacher that reads a prompt of its own.

    It has the student's weights, an adapter's included, and changes with them: nothing that it says is remembered from
    one rollout to the next. Its weights are the present ones, or their running average, whose start is the training's.

    Args:
        prompt: Its prompt: a template with `{question}` and `{answer}`, as in `Teacher`.
        name: Its name in metrics and errors.
        skills: The skills that it teaches. None: all.
        verified: As in `Teacher`.
        average: The share of its weights that each update keeps, in (0, 1]: an exponential moving average of those that
            are trained. 1: the weights with which the training began. None: the present ones.
    """

    def __init__(
        self,
        prompt: str,
        name: str = "self",
        skills: Sequence[str] | None = None,
        verified: Mapping[str, tuple[int, int]] | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__("student", name, skills, verified or {}, prompt=prompt)
        if average is not None and not 0 < average <= 1:
            raise self._error(f"its average keeps a share of the weights in (0, 1], and not {average}")
        self.average = average
        self._weight_average: WeightAverage | None = None

    @property
    def is_student(self) -> bool:
        return True

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Teach with a student.

        Args:
            model: The student without wrappers.
            tokenizer: Its tokenizer.
        """
        self.model, self.tokenizer, self._weight_average = model, tokenizer, None

    def begin(self) -> None:
        """Begin the average with the student's present weights, if there is to be one and it has not begun."""
        if self.average is not None and self._weight_average is None:
            self._weight_average = WeightAverage(self.load(), self.average)

    def follow(self) -> None:
        """Let the average follow the student, whose weights an update has changed."""
        if self._weight_average is not None:
            self._weight_average.update()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages of weights by their names; none without an average."""
        return {} if self._weight_average is None else self._weight_average.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned; an average that it lacks begins with the student's present weights."""
        self._weight_average = None
        self.begin()
        if self._weight_average is not None and state:
            self._weight_average.load_state_dict(state)

    def load(self) -> PreTrainedModel:
        if isinstance(self.model, str):
            raise self._error("it has no student yet; the trainer gives it one")
        return self._unwrapped(self.load_base())

    @contextmanager
    def running(self, device: torch.device) -> Iterator[PreTrainedModel]:
        model = self.load()
        with evaluating(model), self._averaged(model):
            yield model

    def head(self, device: torch.device) -> LMHead:
        model = self.load()
        with self._averaged(model.get_output_embeddings()):
            return LMHead.of(model).detach()

    @contextmanager
    def _averaged(self, part: nn.Module) -> Iterator[None]:
        """Let a part of the student have its average, if there is one."""
        if self._weight_average is None:
            yield
        else:
            with self._weight_average.in_place(part):
                yield

    def num_parameters(self) -> int:
        return self.load().num_parameters()

    def fingerprint(self) -> str:
        """Return the same for all weights: a checkpoint has those of the student, and their average."""
        return "the student"

    def swap(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        raise self._error("it is the student, so it can't become another model")
