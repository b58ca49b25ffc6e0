"""Divergences of a chunk of tokens, and their derivative with respect to the student's logits.

Any divergence with any combination goes through autograd. Forward KL from a mixture, the most common choice, has a
derivative in closed form, which takes half as many passes over memory.

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
from rld.losses.divergences import ForwardKL, softened_target
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


def chunk_divergence(
    logits_NV: Tensor,
    teachers: Mapping[int, TeacherDistribution],
    weights_NK: Tensor,
    objective: ResponseObjective,
    *,
    with_entropies: bool,
) -> ChunkDivergence:
    """Return the divergences of a chunk.

    Args:
        logits_NV: The student's.
        teachers: The distributions at the chunk's tokens of the teachers that are valid at some of them, by number.
        weights_NK: Weight of each teacher at each token, 0 where it is not valid.
        objective: Divergence, combination and temperature.
        with_entropies: Whether to compute the entropies of target and student.
    """
    compute = _forward_kl_of_mixture if _has_closed_form(objective, list(teachers.values())) else _by_autograd
    return compute(logits_NV, teachers, weights_NK, objective, with_entropies=with_entropies)


def _has_closed_form(objective: ResponseObjective, teachers: Sequence[TeacherDistribution]) -> bool:
    """Whether it is forward KL from a mixture, not softened, of full distributions over the student's vocabulary."""
    is_full = all(isinstance(teacher, FullDistribution) and teacher.shared_ids is None for teacher in teachers)
    is_mixture = isinstance(objective.divergence, ForwardKL) and isinstance(objective.combination, Mixture)
    return is_mixture and is_full and objective.teacher_share_N is None and bool(teachers)


def _forward_kl_of_mixture(
    logits_NV: Tensor,
    teachers: Mapping[int, TeacherDistribution],
    weights_NK: Tensor,
    objective: ResponseObjective,
    *,
    with_entropies: bool,
) -> ChunkDivergence:
    """With respect to the logits z, the derivative of KL(p || softmax(z / T)) is `(softmax(z / T) - p) / T`."""
    log_s_NV = log_softmax(logits_NV, objective.temperature).clamp_(min=LOG_ZERO)
    chunk = _zeros(log_s_NV, weights_NK.shape[1])
    weights_NJ = weights_NK[:, list(teachers)].to(log_s_NV)
    total_N1 = weights_NJ.sum(1, keepdim=True)
    shares_NJ = weights_NJ / total_N1.clamp(min=MIN_PROBABILITY)
    target_NV = torch.zeros_like(log_s_NV)
    for j, (k, teacher) in enumerate(teachers.items()):
        log_p_NV = teacher.log_probabilities(log_s_NV, objective.temperature)
        p_NV = log_p_NV.exp()
        divergence_N = torch.linalg.vecdot(p_NV, log_p_NV.sub_(log_s_NV)).clamp_(min=0)
        chunk.teacher_divergence_NK[:, k] = divergence_N.masked_fill(~teacher.valid_N, 0.0)
        target_NV.addcmul_(p_NV, shares_NJ[:, j : j + 1])
    log_target_NV = target_NV.clamp(min=MIN_PROBABILITY).log_()
    if with_entropies:
        chunk.student_entropy_N = entropy(log_s_NV)
        chunk.target_entropy_N = -torch.linalg.vecdot(target_NV, log_target_NV)
    if len(teachers) > 1:  # of one teacher it is `divergence_N`, which is exactly 0 for equal distributions
        divergence_N = torch.linalg.vecdot(target_NV, log_target_NV.sub_(log_s_NV)).clamp_(min=0)
    chunk.target_divergence_N = total_N1[:, 0] * divergence_N
    chunk.derivative_NV = log_s_NV.exp_().sub_(target_NV).mul_(total_N1 / objective.temperature)
    return chunk


def _by_autograd(
    logits_NV: Tensor,
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
        logits_NV = logits_NV.detach().requires_grad_()
        log_s_NV = log_softmax(logits_NV, temperature).clamp(min=LOG_ZERO)
        chunk = _zeros(log_s_NV, weights_NK.shape[1])
        log_p = {k: teacher.log_probabilities(log_s_NV.detach(), temperature) for k, teacher in teachers.items()}
        total_N = log_s_NV[:, 0] * 0.0  # connected to the logits even if no teacher is valid
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
        (chunk.derivative_NV,) = torch.autograd.grad(total_N.sum(), logits_NV)
    chunk.target_divergence_N = total_N.detach().clamp(min=0)
    if with_entropies:
        chunk.student_entropy_N = entropy(log_s_NV.detach())
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
