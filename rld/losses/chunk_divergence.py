"""Divergences of a chunk of tokens, and their derivative with respect to the student's logits.

Any divergence with any combination goes through autograd. Jensen-Shannon divergence and forward KL from a mixture, the
most common choices, have a derivative in closed form, which takes half as many passes over memory.

Shapes: N tokens of the chunk, V vocabulary, K teachers, J teachers that are valid at some token of the chunk, or tokens
that two vocabularies share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rld.losses.combination import Mixture, entropy
from rld.losses.cross_tokenizer import sorted_difference
from rld.losses.divergences import JSD, ForwardKL, softened_target
from rld.losses.objective import Divergence, ResponseObjective
from rld.losses.teacher_distribution import (
    LOG_ZERO,
    MIN_PROBABILITY,
    MIN_TAIL_LOGPROB,
    FullDistribution,
    TeacherDistribution,
    log_softmax,
    with_tail,
)

_NUM_RANKED = 128
"""Unshared tokens of each vocabulary whose probabilities are compared by rank; the remaining ones are negligible."""


@dataclass
class ChunkDivergence:
    """Divergences and entropies of a chunk in nats, without gradient."""

    target_divergence_N: Tensor
    """Divergence from the teachers' target, times the target's weight, at least 0."""
    teacher_divergence_NK: Tensor
    """Divergence from each teacher, at least 0; 0 where the teacher is not valid."""
    target_entropy_N: Tensor
    """Entropy of the target; of teachers that are not pooled the weighted mean. 0 if not requested."""
    student_entropy_N: Tensor
    """Entropy of the student at the objective's temperature. 0 if not requested."""
    derivative_NV: Tensor
    """Derivative of `target_divergence_N` with respect to the student's logits."""


@dataclass(frozen=True)
class StudentProbabilities:
    """The student's distributions at the tokens of a chunk."""

    log_NV: Tensor
    """Log-probabilities in nats, at least `LOG_ZERO`."""
    p_NV: Tensor
    """Probabilities."""

    @classmethod
    def of(cls, logits_NV: Tensor, temperature: float) -> StudentProbabilities:
        """The distributions of logits at a temperature."""
        log_NV = log_softmax(logits_NV, temperature).clamp_(min=LOG_ZERO)
        return cls(log_NV, log_NV.exp())

    def entropy(self) -> Tensor:
        """Entropy of each token's distribution, `[N]` in nats."""
        entropy_N: Tensor = -torch.linalg.vecdot(self.p_NV, self.log_NV)
        return entropy_N


def chunk_divergence(
    student: StudentProbabilities,
    teachers: Mapping[int, TeacherDistribution],
    weights_NK: Tensor,
    objective: ResponseObjective,
    *,
    with_entropies: bool,
) -> ChunkDivergence:
    """Return the divergences of a chunk.

    Args:
        student: Its distributions at the objective's temperature; the probabilities are overwritten.
        teachers: The distributions at the chunk's tokens of the teachers that are valid at some of them, by number.
        weights_NK: Weight of each teacher at each token, 0 where it is not valid.
        objective: Divergence, combination and temperature.
        with_entropies: Whether to compute the entropies of target and student.
    """
    compute = _in_closed_form if _has_closed_form(objective, list(teachers.values())) else _by_autograd
    return compute(student, teachers, weights_NK, objective, with_entropies=with_entropies)


def _has_closed_form(objective: ResponseObjective, teachers: Sequence[TeacherDistribution]) -> bool:
    """Whether it is from a mixture, not softened, of full distributions over the student's vocabulary."""
    is_full = all(isinstance(teacher, FullDistribution) and teacher.shared_ids is None for teacher in teachers)
    is_mixture = isinstance(objective.divergence, ForwardKL | JSD) and isinstance(objective.combination, Mixture)
    return is_mixture and is_full and objective.teacher_share_N is None and bool(teachers)


def _in_closed_form(
    student: StudentProbabilities,
    teachers: Mapping[int, TeacherDistribution],
    weights_NK: Tensor,
    objective: ResponseObjective,
    *,
    with_entropies: bool,
) -> ChunkDivergence:
    chunk = _zeros(student.log_NV, weights_NK.shape[1])
    weights_NJ = weights_NK[:, list(teachers)].to(student.log_NV)
    total_N1 = weights_NJ.sum(1, keepdim=True)
    shares_NJ = weights_NJ / total_N1.clamp(min=MIN_PROBABILITY)
    divergence = objective.divergence
    formula = _JSDFormula(student, divergence.beta) if isinstance(divergence, JSD) else _ForwardKLFormula(student)
    target_NV = torch.zeros_like(student.log_NV)
    # `compared_NV` is that from which the formula makes its derivative: probabilities (forward KL) or log-ratios (JSD).
    for j, (k, teacher) in enumerate(teachers.items()):
        log_p_NV = teacher.log_probabilities(student.log_NV, objective.temperature)
        p_NV = log_p_NV.exp()
        target_NV.addcmul_(p_NV, shares_NJ[:, j : j + 1])
        divergence_N, compared_NV = formula.divergence(log_p_NV, p_NV)
        chunk.teacher_divergence_NK[:, k] = divergence_N.masked_fill(~teacher.valid_N, 0.0)
    if with_entropies:
        chunk.student_entropy_N = student.entropy()
        chunk.target_entropy_N = -torch.linalg.vecdot(target_NV, _log(target_NV))
    if len(teachers) > 1:  # of one teacher it is `divergence_N`, which is exactly 0 for equal distributions
        divergence_N, compared_NV = formula.divergence(_log(target_NV), target_NV)
    chunk.target_divergence_N = total_N1[:, 0] * divergence_N
    chunk.derivative_NV = formula.derivative(compared_NV).mul_(total_N1 / objective.temperature)
    return chunk


def _log(p_NV: Tensor) -> Tensor:
    return p_NV.clamp(min=MIN_PROBABILITY).log_()


class _ForwardKLFormula:
    """KL(p || s), where s is the student; with respect to the logits of s its derivative is `s - p`."""

    def __init__(self, student: StudentProbabilities) -> None:
        self.student = student

    def divergence(self, log_p_NV: Tensor, p_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence, `[N]`, and p for `derivative`; `log_p_NV` is overwritten."""
        return torch.linalg.vecdot(p_NV, log_p_NV.sub_(self.student.log_NV)).clamp_(min=0), p_NV

    def derivative(self, p_NV: Tensor) -> Tensor:
        """Return the derivative in place of the student's probabilities, which are overwritten; p is not."""
        return self.student.p_NV.sub_(p_NV)


class _JSDFormula:
    """`b KL(p || m) + (1 - b) KL(s || m)` with `m = b p + (1 - b) s`, where s is the student.

    With respect to the logits of s its derivative is `(1 - b) s (log(s / m) - KL(s || m))`.
    """

    def __init__(self, student: StudentProbabilities, beta: float) -> None:
        self.student, self.beta = student, beta

    def divergence(self, log_p_NV: Tensor, p_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence, `[N]`, and log(s / m) for `derivative`; `log_p_NV` is overwritten."""
        student, beta = self.student, self.beta
        log_m_NV = _log((p_NV * beta).add_(student.p_NV, alpha=1 - beta))
        teacher_N = torch.linalg.vecdot(p_NV, log_p_NV.sub_(log_m_NV))
        log_ratio_NV = torch.sub(student.log_NV, log_m_NV, out=log_m_NV)
        student_N = torch.linalg.vecdot(student.p_NV, log_ratio_NV)
        return (beta * teacher_N + (1 - beta) * student_N).clamp_(min=0), log_ratio_NV

    def derivative(self, log_ratio_NV: Tensor) -> Tensor:
        """Return the derivative in place of the ratios, which are overwritten; the probabilities are not."""
        p_NV = self.student.p_NV
        mean_N1 = torch.linalg.vecdot(p_NV, log_ratio_NV)[:, None]
        return log_ratio_NV.sub_(mean_N1).mul_(p_NV).mul_(1 - self.beta)


def _by_autograd(
    student: StudentProbabilities,
    teachers: Mapping[int, TeacherDistribution],
    weights_NK: Tensor,
    objective: ResponseObjective,
    *,
    with_entropies: bool,
) -> ChunkDivergence:
    divergence, combination, temperature = objective.divergence, objective.combination, objective.temperature
    pooled = [k for k, t in teachers.items() if t.shared_ids is None] if combination.pools else []
    pooled = pooled if len(pooled) > 1 else []
    with torch.enable_grad():
        log_s_NV = student.log_NV.detach().requires_grad_()
        chunk = _zeros(log_s_NV, weights_NK.shape[1])
        log_p = {k: teacher.log_probabilities(log_s_NV.detach(), temperature) for k, teacher in teachers.items()}
        total_N = log_s_NV[:, 0] * 0.0  # connected to the student even if no teacher is valid
        for k, teacher in teachers.items():
            with torch.set_grad_enabled(k not in pooled):
                divergence_N = _teacher_divergence(divergence, log_s_NV, log_p[k], teacher.shared_ids)
            positive_N = divergence_N.detach().clamp(min=0)  # rounding may make it negative
            chunk.teacher_divergence_NK[:, k] = positive_N.masked_fill(~teacher.valid_N, 0.0)
            if k not in pooled:
                if objective.teacher_share_N is not None and teacher.shared_ids is None:
                    divergence_N = divergence(log_s_NV, _softened(objective, log_s_NV, log_p[k]))
                total_N = total_N + weights_NK[:, k] * divergence_N
        targets = [(log_p[k], weights_NK[:, k]) for k in teachers if k not in pooled]
        if pooled:
            log_p_JNV = torch.stack([log_p[k] for k in pooled])
            target_NV, weight_N = combination.target(log_p_JNV, weights_NK[:, pooled])
            total_N = total_N + weight_N * divergence(log_s_NV, _softened(objective, log_s_NV, target_NV))
            targets.append((target_NV, weight_N))
        (slope_NV,) = torch.autograd.grad(total_N.sum(), log_s_NV)
    slope_NV = slope_NV.masked_fill(student.log_NV == LOG_ZERO, 0.0)
    slope_N1 = slope_NV.sum(1, keepdim=True)
    chunk.derivative_NV = slope_NV.addcmul_(student.p_NV, slope_N1, value=-1).div_(temperature)
    chunk.target_divergence_N = total_N.detach().clamp(min=0)
    if with_entropies:
        chunk.student_entropy_N = student.entropy()
        chunk.target_entropy_N = _mean_entropy(targets) if targets else chunk.target_entropy_N
    return chunk


def _softened(objective: ResponseObjective, log_s_NV: Tensor, target_NV: Tensor) -> Tensor:
    """The target, between the student's distribution and the teachers' where the objective softens it."""
    share_N = objective.teacher_share_N
    return target_NV if share_N is None else softened_target(log_s_NV, target_NV, share_N[:, None])


def _zeros(log_s_NV: Tensor, num_teachers: int) -> ChunkDivergence:
    zeros_N = log_s_NV.detach().new_zeros(len(log_s_NV))
    return ChunkDivergence(
        target_divergence_N=zeros_N,
        teacher_divergence_NK=zeros_N.new_zeros(len(zeros_N), num_teachers),
        target_entropy_N=zeros_N,
        student_entropy_N=zeros_N,
        derivative_NV=zeros_N.new_zeros(0),
    )


def _mean_entropy(targets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean entropy `[N]` of targets `[N, V]`, each counted by its weight `[N]`; 0 where all weights are 0."""
    weights_JN = torch.stack([weight_N for _, weight_N in targets])
    entropies_JN = torch.stack([entropy(target_NV) for target_NV, _ in targets])
    return (weights_JN * entropies_JN).sum(0) / weights_JN.sum(0).clamp(min=1e-12)


def _teacher_divergence(
    divergence: Divergence, student_NV: Tensor, teacher_NV: Tensor, shared_ids: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Divergence from one teacher, `[N]`.

    Between different vocabularies it is the divergence over the shared tokens and one outcome for all others, plus half
    the L1 distance between the sorted probabilities of the others (Boizard et al. 2024, ULD; as in TRL's GOLD).
    """
    if shared_ids is None:
        return divergence(student_NV, teacher_NV)
    student_NJ, student_rest_NV = _split(student_NV, shared_ids[0])
    teacher_NJ, teacher_rest_NV = _split(teacher_NV, shared_ids[1])
    return divergence(student_NJ, teacher_NJ) + 0.5 * sorted_difference(student_rest_NV, teacher_rest_NV)


def _split(log_p_NV: Tensor, ids_J: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens `ids_J` and of all others together, and the others' largest probabilities."""
    shared_NJ = with_tail(log_p_NV, ids_J.expand(len(log_p_NV), -1), MIN_TAIL_LOGPROB)
    others_NV = log_p_NV.exp().index_fill(-1, ids_J, 0.0)
    return shared_NJ, others_NV.topk(min(_NUM_RANKED, others_NV.shape[-1]), dim=-1).values
