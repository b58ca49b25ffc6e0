"""What an ensemble hands to each of its teachers and gets back, and the interface of one teacher.

Shapes: B completions of a rollout, R of them that a teacher scores, P prompt tokens, T completion tokens, H width,
V tokens of a vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import TeacherError
from rld.losses.feature_matching import FeaturePlan
from rld.losses.features import AnyFeature
from rld.losses.teacher_outputs import TeacherOutputs, TeacherTensor, teacher_key
from rld.models.drafts import Pair
from rld.models.heads import LMHead
from rld.models.prompting import PromptEncoder
from rld.teachers.teacher import Teacher
from rld.teachers.translation import StudentVocabulary

PrepareModel = Callable[[PreTrainedModel], PreTrainedModel]
"""Moves a model to its device and wraps it for evaluation."""


@dataclass
class StudentInterface:
    """What teachers need to know of their student.

    Args:
        model: The student without wrappers.
        encoder: Encodes prompts for it.
        feature: The feature signal's loss. None: features are not compared.
        is_chat: Whether its prompts are conversations.
    """

    model: PreTrainedModel
    encoder: PromptEncoder
    feature: AnyFeature | None
    is_chat: bool = False

    def __post_init__(self) -> None:
        self.num_logits = len(self.model.get_output_embeddings().weight)
        """The size of its vocabulary, to which teachers' heads are cut; read before processes share the weights."""

    @property
    def head_device(self) -> torch.device:
        """The device of the output head, which teachers' heads follow."""
        device: torch.device = self.model.get_output_embeddings().weight.device
        return device

    @cached_property
    def vocabulary(self) -> StudentVocabulary:
        """The bytes of the student's tokens, computed once for all aligned teachers."""
        return StudentVocabulary(self.encoder, self.is_chat)


@dataclass(frozen=True)
class TeacherBatch:
    """The completions of a rollout that one teacher scores, in the student's tokens."""

    prompts: Sequence[Any]
    """Text or messages, one per completion."""
    prompt_ids_RP: Tensor
    """Padded on the left."""
    prompt_mask_RP: Tensor
    completion_ids_RT: Tensor
    """Padded on the right."""
    completion_mask_RT: Tensor
    temperature: float
    """Temperature of the log-probabilities of spans and of top-k log-probabilities."""
    rows_per_forward: int
    """Completions per forward on a CPU; elsewhere as many as fit into memory."""
    drafts: Sequence[Pair] = ()
    """Prompts and drafts in the teacher's tokens, which it reads beside the completions."""


@dataclass(frozen=True)
class SlotResult:
    """The outputs of one teacher on a `TeacherBatch`."""

    tokens_RT: Tensor
    """Bool: where the teacher has a distribution."""
    tensors: Mapping[TeacherTensor, Tensor]
    """`[R, …]`, what the rollout carries of the teacher."""
    num_computed: int
    """Tokens that went through the teacher."""
    num_cached: int = 0
    """Tokens that it did not have to read, because a cache has their log-probabilities."""
    draft_states: Sequence[Tensor] = ()
    """For each draft the last hidden states `[tokens, H]` that predict its tokens."""


class TeacherSlot(ABC):
    """One teacher of an ensemble.

    Args:
        index: Its number k in the ensemble.
        teacher: The teacher, whose tokenizer is checked.
        student: The student that it teaches.
        prepare: Prepares a model of this process.

    Attributes:
        plan: The states that features are compared at. None: there is no feature signal.

    Raises:
        TeacherError: the teacher hands over no states for the feature signal.
        RecipeError: the feature signal compares layers that a model does not have.
    """

    def __init__(self, index: int, teacher: Teacher, student: StudentInterface, *, prepare: PrepareModel) -> None:
        self.index, self.teacher, self.student, self._prepare = index, teacher, student, prepare
        self._read_teacher()
        self.plan: FeaturePlan | None = None
        if student.feature is not None:
            self.plan = FeaturePlan.of(student.feature, student.model, teacher.load(), str(teacher.name))
            teacher.require_states(self.plan.teacher_keys)

    def _read_teacher(self) -> None:
        """Read what depends on the teacher's weights."""
        self.num_parameters = self.teacher.num_parameters()
        # A base model ends with another token than its instruct sibling: its probability of the other's end is noise.
        # An end that only the chat template names is no less the teacher's than the student's.
        self._foreign_ends = sorted(set(self.student.encoder.ends(is_chat=False)) - self.teacher.ends())
        self._foreign_tokens = self.teacher.foreign_tokens(self.student.encoder.tokenizer)

    @property
    def is_remote(self) -> bool:
        """Whether the teacher runs elsewhere, so that it can score while other teachers run here."""
        return False

    def takes_drafts(self, scoring_dtype: torch.dtype | None) -> bool:
        """Whether it can read drafts beside the completions of their prompts as it would read them alone.

        Args:
            scoring_dtype: The type in which autocast computes while it scores. None: in the model's own, in which
                drafts are read alone.
        """
        return False

    @property
    def model(self) -> PreTrainedModel | None:
        """The prepared model; None for a teacher without one of its own."""
        return None

    def swap(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Use the weights of another model from now on.

        Raises:
            TeacherError: the tokenizer is another one, the teacher has no model of its own, or features are compared,
                whose projections fit the old model.
        """
        if self.plan is not None:
            raise TeacherError(f"teacher '{self.teacher.name}' can't change its weights with a feature signal")
        self.teacher.swap(model, tokenizer)
        self._read_teacher()

    def scorable_rows(self, rollout: Mapping[str, Any], rows_B: Tensor) -> Tensor:
        """Return which of the rows `[B]` bool the teacher can score."""
        return rows_B

    @abstractmethod
    def run(self, batch: TeacherBatch) -> SlotResult | None:
        """Score completions; None if the teacher has no output for any of them."""

    @abstractmethod
    def outputs(self, batch: Mapping[str, Any]) -> TeacherOutputs:
        """Return what the loss reads of a micro-batch."""

    @abstractmethod
    def sampled_scores(self, rollout: Mapping[str, Any], temperature: float) -> Tensor | None:
        """Return the log-probability in nats of the span that each sampled token lies in, `[B, T]`; None if not run."""

    def sampled_spans(self, rollout: Mapping[str, Any]) -> Tensor:
        """Return the number of the span that each token lies in, `[B, T]`, -1 where the teacher has no distribution.

        A span is a token, unless the teacher has another tokenizer.
        """
        tokens_BT: Tensor = rollout["teacher_tokens"][:, self.index]
        return torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand(tokens_BT.shape).where(tokens_BT, -1)

    def head(self) -> LMHead:
        """Return the output head, cut to the vocabulary that student and teacher share."""
        head = self.teacher.head(self.student.head_device)
        return head.truncated(min(self.student.num_logits, len(head.weight)))

    def _is_foreign(self, ids: Tensor) -> Tensor:
        """Return which ids are tokens of the student that the teacher reads as other ones."""
        return torch.isin(ids, torch.tensor([*self._foreign_tokens], dtype=ids.dtype, device=ids.device))

    def _require_readable_prompts(self, batch: TeacherBatch) -> None:
        """Refuse prompts with tokens that the teacher reads as other ones.

        Raises:
            TeacherError: a prompt has one.
        """
        foreign_RP = self._is_foreign(batch.prompt_ids_RP) & batch.prompt_mask_RP.bool()
        if self._foreign_tokens and foreign_RP.any():
            token = int(batch.prompt_ids_RP[foreign_RP][0])
            raise TeacherError(
                f"teacher '{self.teacher.name}': a prompt has the student's token {token}, "
                f"{self._foreign_tokens[token]!r}, which the teacher's tokenizer lacks there; set align for it, "
                "or choose a teacher of the student's family"
            )

    def _get(self, batch: Mapping[str, Any], name: TeacherTensor) -> Tensor | None:
        """Return a tensor of this teacher in a rollout; None if it was not run."""
        return batch.get(teacher_key(self.index, name))

    def _is_not_foreign_end(self, ids_RT: Tensor) -> Tensor:
        """Return which tokens are not an end of completions that this teacher never uses."""
        return ~torch.isin(ids_RT, torch.tensor(self._foreign_ends, device=ids_RT.device))
