"""Sums from which a controller's observations are made, with one name per quantity.

All sums are float64 tensors. The letters at the end of a name are its axes: `_S` skills, `_SK` skills and teachers,
`_G` signals in the order of `SIGNALS`; a name without letters is one number.

Shapes: B completions, T completion tokens, H width, K teachers, S skills, G signals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor

from rld.controllers.observation import GradientStats, SkillObservation, TeacherInfo, TeacherObservation
from rld.types import SIGNALS, Signal


@dataclass(frozen=True)
class NamedSums:
    """Sums that are added field by field."""

    @classmethod
    def zeros(cls, num_skills: int, num_teachers: int, device: torch.device | None = None) -> Self:
        """Return sums of nothing."""
        sizes = {"S": num_skills, "K": num_teachers, "G": len(SIGNALS)}
        shapes = {field.name: [sizes[axis] for axis in _axes(field.name)] for field in fields(cls)}
        return cls(**{name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()})

    def __add__(self, other: Self) -> Self:
        return type(self)(**{name: value + getattr(other, name) for name, value in self._tensors().items()})

    def cpu(self) -> Self:
        return type(self)(**{name: value.cpu() for name, value in self._tensors().items()})

    def reduced(self, accelerator: Accelerator) -> Self:
        """Return the sums over all processes, on the CPU."""
        tensors = self._tensors()
        flat = torch.cat([value.flatten() for value in tensors.values()]).to(accelerator.device)
        parts = accelerator.reduce(flat, reduction="sum").cpu().split([value.numel() for value in tensors.values()])
        return type(self)(
            **{name: part.view(value.shape) for (name, value), part in zip(tensors.items(), parts, strict=True)}
        )

    def is_finite(self) -> bool:
        """Tell whether all sums are finite."""
        return all(bool(value.isfinite().all()) for value in self._tensors().values())

    def for_teachers(self, before: Sequence[str], now: Sequence[str]) -> Self:
        """Return the sums of the teachers `now`, in their order; 0 for those that are not in `before`."""
        places = torch.tensor([before.index(name) if name in before else len(before) for name in now], dtype=torch.long)
        return type(self)(
            **{
                name: torch.cat([value, torch.zeros_like(value[:, :1])], 1)[:, places] if _axes(name) == "SK" else value
                for name, value in self._tensors().items()
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Return the sums as nested lists, by name."""
        return {name: value.tolist() for name, value in self._tensors().items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the sums that `to_json` wrote."""
        return cls(**{field.name: torch.tensor(data[field.name], dtype=torch.float64) for field in fields(cls)})

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _axes(name: str) -> str:
    """The axes that a name ends with: `divergence_SK` has `SK`, `student_tokens` has none."""
    suffix = name.rpartition("_")[2]
    return suffix if suffix.isupper() else ""


@dataclass(frozen=True)
class AttemptCounts(NamedSums):
    """The student's attempts, and groups of completions of one prompt."""

    attempts_S: Tensor
    successes_S: Tensor
    groups_S: Tensor
    informative_S: Tensor
    """Groups whose completions got different rewards."""
    levels_S: Tensor
    """Levels of the prompts of the attempts."""
    gold_S: Tensor
    """Gold answers that were learnt by themselves, and in no group."""
    sampled_S: Tensor
    """Completions that the student sampled: the attempts, and those to which the verifier does not apply."""
    attempt_tokens_S: Tensor
    """Tokens of the attempts, but for those at prompts that were replaced."""
    success_tokens_S: Tensor
    """Tokens of the successful attempts."""


@dataclass(frozen=True)
class AuditCounts(NamedSums):
    """Paid completions that the trusted reward checked, and those that it found correct."""

    audited_S: Tensor
    passed_S: Tensor


@dataclass(frozen=True)
class GateCounts(NamedSums):
    """The gate's questions to teachers, and the student's attempts at prompts that a teacher answers correctly."""

    prompts_SK: Tensor
    """Prompts that a teacher was asked to answer, now or before."""
    correct_SK: Tensor
    """Of these, those that it answered correctly."""
    attempts_SK: Tensor
    """The student's attempts at prompts that it may teach, those included whose verdict is assumed."""
    successes_SK: Tensor
    resampled_SK: Tensor
    """Prompts answered correctly for which a sampled answer was requested too."""
    resampled_correct_SK: Tensor
    """Of these, those whose sampled answer was correct."""


_COUNTS = {
    "delta_squares_S": "delta_tokens_S",
    "divergence_SK": "divergence_tokens_SK",
    "distance_SK": "distance_tokens_SK",
    "gradient_squares_G": "gradient_tokens_G",
}
"""The measurements of an update, and the numbers of tokens at which they were made."""


@dataclass(frozen=True)
class UpdateStatistics(NamedSums):
    """Measurements on the micro-batches of one optimiser step; the `add` methods change the sums in place."""

    tokens_S: Tensor
    """Completion tokens."""
    delta_squares_S: Tensor
    """Squares of the teacher-scored reward's difference of log-probabilities, in nats²."""
    delta_tokens_S: Tensor
    divergence_SK: Tensor
    """Divergence of the student from a teacher, in nats."""
    divergence_tokens_SK: Tensor
    distance_SK: Tensor
    """Feature distance of the student from a teacher."""
    distance_tokens_SK: Tensor
    student_tokens: Tensor
    """Tokens that the student's forward computed, prompts and padding included."""
    padding_tokens: Tensor
    """Of these, padding."""
    gold_tokens: Tensor
    """Of these, those for gold answers that are learnt beside completions."""
    gradient_squares_G: Tensor
    """Squared norms of the gradient of a signal's unweighted loss with respect to the last hidden states."""
    gradient_tokens_G: Tensor

    def add_tokens(
        self, skills_B: Tensor, mask_BT: Tensor, *, num_computed: int, num_padding: int, num_gold: int
    ) -> None:
        """Add completion tokens, and the tokens that the student's forward computed for them.

        Args:
            skills_B: The index of each completion's skill.
            mask_BT: Its tokens.
            num_computed: Tokens that the forward computed.
            num_padding: Of these, padding.
            num_gold: Of these, those for gold answers that are learnt beside completions.
        """
        self.tokens_S.index_add_(0, skills_B, mask_BT.sum(-1).double())
        self.gold_tokens.add_(num_gold)
        self.student_tokens.add_(num_computed)
        self.padding_tokens.add_(num_padding)

    def finite(self) -> UpdateStatistics:
        """Return the sums in which what is not finite was not measured: it is 0, and so is its number of tokens."""
        tensors = self._tensors()
        for values, counts in _COUNTS.items():
            is_finite = tensors[values].isfinite()
            tensors |= {name: torch.where(is_finite, tensors[name], 0) for name in (values, counts)}
        return UpdateStatistics(**tensors)

    def add_gradient(
        self, signal: Signal, total: Tensor, hidden_BTH: Tensor, weight_B: Tensor, counts_BT: Tensor
    ) -> Tensor | None:
        """Measure the gradient of a signal with respect to the student's last hidden states, its weight divided out.

        Args:
            signal: Which one.
            total: The signal's weighted sum over tokens.
            hidden_BTH: The states that predict the completion tokens, as the head received them.
            weight_B: The signal's weights; completions of weight 0 are left out.
            counts_BT: The tokens that count.

        Returns:
            The gradient of the unweighted sum at the tokens that count, 0 elsewhere, `[B, T, H]`; None if none do.
        """
        counted_BT = counts_BT.bool() & (weight_B > 0)[:, None]
        if not counted_BT.any():
            return None
        (gradient_BTH,) = torch.autograd.grad(total, hidden_BTH, retain_graph=True, materialize_grads=True)
        gradient_BTH = gradient_BTH.to(torch.float64, copy=True)
        gradient_BTH /= weight_B.double().clamp(min=1e-12)[:, None, None]
        gradient_BTH.masked_fill_(~counted_BT[..., None], 0.0)
        i = SIGNALS.index(signal)
        self.gradient_squares_G[i] += gradient_BTH.pow(2).sum()
        self.gradient_tokens_G[i] += counted_BT.sum()
        return gradient_BTH

    def add_delta(self, skills_B: Tensor, delta_BT: Tensor, mask_BT: Tensor, taught_BT: Tensor) -> None:
        """Add the squares of `delta_BT` at completion tokens that a teacher scored."""
        counted_BT = mask_BT.bool() & taught_BT
        squares_B = delta_BT.double().pow(2).masked_fill(~counted_BT, 0.0).sum(-1)
        self.delta_squares_S.index_add_(0, skills_B, squares_B)
        self.delta_tokens_S.index_add_(0, skills_B, counted_BT.sum(-1).double())

    def add_divergences(
        self,
        skills_B: Tensor,
        mask_BT: Tensor,
        tokens_BKT: Tensor,
        divergence_BKT: Tensor | None,
        distance_BKT: Tensor | None,
    ) -> None:
        """Add each teacher's divergence and feature distance, where computed, at the tokens where it has an output."""
        counted_BKT = mask_BT.bool()[:, None] & tokens_BKT
        for values_BKT, sums_SK, tokens_SK in (
            (divergence_BKT, self.divergence_SK, self.divergence_tokens_SK),
            (distance_BKT, self.distance_SK, self.distance_tokens_SK),
        ):
            if values_BKT is not None:
                sums_BK = values_BKT.detach().double().masked_fill(~counted_BKT, 0.0).sum(-1)
                sums_SK.index_add_(0, skills_B, sums_BK)
                tokens_SK.index_add_(0, skills_B, counted_BKT.sum(-1).double())


@dataclass
class WindowStatistics:
    """All sums between two ticks, over all processes."""

    attempts: AttemptCounts
    audit: AuditCounts
    gate: GateCounts
    updates: UpdateStatistics

    @classmethod
    def zeros(cls, num_skills: int, num_teachers: int) -> WindowStatistics:
        return cls(
            attempts=AttemptCounts.zeros(num_skills, num_teachers),
            audit=AuditCounts.zeros(num_skills, num_teachers),
            gate=GateCounts.zeros(num_skills, num_teachers),
            updates=UpdateStatistics.zeros(num_skills, num_teachers),
        )

    def for_teachers(self, before: Sequence[str], now: Sequence[str]) -> WindowStatistics:
        """Return the sums of the teachers `now`, in their order; 0 for those that are not in `before`."""
        return replace(self, gate=self.gate.for_teachers(before, now), updates=self.updates.for_teachers(before, now))

    def to_json(self) -> dict[str, Any]:
        """Return the sums as nested lists, by name."""
        return {
            "attempts": self.attempts.to_json(),
            "audit": self.audit.to_json(),
            "gate": self.gate.to_json(),
            "updates": self.updates.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WindowStatistics:
        """Return the sums that `to_json` wrote."""
        return cls(
            attempts=AttemptCounts.from_json(data["attempts"]),
            audit=AuditCounts.from_json(data["audit"]),
            gate=GateCounts.from_json(data["gate"]),
            updates=UpdateStatistics.from_json(data["updates"]),
        )

    def gradient_norms(self) -> dict[str, float | None]:
        """Return each signal's root-mean-square gradient per token; None where it was not measured."""
        sums = zip(
            SIGNALS, self.updates.gradient_squares_G.tolist(), self.updates.gradient_tokens_G.tolist(), strict=True
        )
        return {signal: math.sqrt(squares / tokens) if tokens else None for signal, squares, tokens in sums}

    def skill_observation(
        self, s: int, skill: str, teachers: Sequence[TeacherInfo], gradients: GradientStats | None
    ) -> SkillObservation:
        """Return what a controller is shown of skill number `s`."""
        return SkillObservation(
            sampled=int(self.attempts.sampled_S[s]),
            attempts=int(self.attempts.attempts_S[s]),
            gold_answers=int(self.attempts.gold_S[s]),
            attempt_tokens=int(self.attempts.attempt_tokens_S[s]),
            successes=int(self.attempts.successes_S[s]),
            success_tokens=int(self.attempts.success_tokens_S[s]),
            groups=int(self.attempts.groups_S[s]),
            informative_groups=int(self.attempts.informative_S[s]),
            teachers={
                teacher.name: self._teacher_observation(s, k, skill, teacher) for k, teacher in enumerate(teachers)
            },
            level=float(self.attempts.levels_S[s] / self.attempts.attempts_S[s])
            if self.attempts.attempts_S[s]
            else None,
            audited=int(self.audit.audited_S[s]),
            audit_passed=int(self.audit.passed_S[s]),
            gradients=gradients,
        )

    def _teacher_observation(self, s: int, k: int, skill: str, teacher: TeacherInfo) -> TeacherObservation:
        divergence, tokens = float(self.updates.divergence_SK[s, k]), float(self.updates.divergence_tokens_SK[s, k])
        correct, size = teacher.verified.get(skill, (0, 0))
        return TeacherObservation(
            divergence=divergence / tokens if tokens else None,
            probe_correct=correct,
            probe_size=size,
            teaches=teacher.teaches(skill),
            prompts=int(self.gate.prompts_SK[s, k]),
            correct=int(self.gate.correct_SK[s, k]),
            attempts=int(self.gate.attempts_SK[s, k]),
            successes=int(self.gate.successes_SK[s, k]),
            resampled=int(self.gate.resampled_SK[s, k]),
            resampled_correct=int(self.gate.resampled_correct_SK[s, k]),
        )
