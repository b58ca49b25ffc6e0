"""One pass over the vocabulary for policy and response, without ever holding a batch's logits.

Tokens are taken a few at a time. For those the logits of the student and of each teacher are computed once: the
student's give the log-probability of the token that was sampled and the entropy, the teachers' are combined into a
target, the divergence from it is called as written in `divergences.py`, and its gradient is taken back to the student's
hidden states and head at once, while the logits are still there: one product with the student's head and one with each
teacher's, and two more for the gradients.

That asks for knowing how much each token will count in the loss. So the pass returns the weighted sum, through which
the gradient flows, and the streams per token for the log and the controller, through which it doesn't. How much a
sampled token counts depends on its own log-probability; going backwards from there takes three products more, and those
only for tokens that count: none where the policy is off, or where all completions of a prompt did equally well.

Shapes: N tokens, H width, V vocabulary, K teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rld.losses.combination import Mixture, entropy
from rld.losses.cross_tokenizer import sorted_difference
from rld.losses.divergences import ForwardKL
from rld.losses.objective import Divergence, ResponseObjective
from rld.losses.teacher_distribution import (
    LOG_ZERO,
    MIN_PROBABILITY,
    MIN_TAIL_LOGPROB,
    TeacherDistribution,
    log_softmax,
    with_tail,
)
from rld.models.heads import LMHead
from rld.models.logprob_source import TopKLogprobs
from rld.utils.tensors import token_chunks

_MAX_LOGITS = 1 << 21
"""Logits of one model held at a time: 8 MiB in float32, which fits into a processor's cache."""

_MIN_TOKENS = 64
"""Tokens of a chunk at least: with fewer, reading the output heads from memory takes longer than the products."""

_RANKED = 128
"""Tokens without a counterpart whose probabilities are compared by rank; the others are too small to matter."""


@dataclass(frozen=True)
class SampledTokens:
    """The tokens that the student sampled, and the temperature at which it did."""

    tokens_N: Tensor
    temperature: float

    def at(self, rows: slice | Tensor) -> SampledTokens:
        """Some of them."""
        return replace(self, tokens_N=self.tokens_N[rows])


class PerTokenStats(NamedTuple):
    """Per token; the first two with their gradient, the others without."""

    log_pi_N: Tensor
    """Log-probability of the sampled token, in nats; 0 without `SampledTokens`."""
    entropy_N: Tensor
    """Entropy at the temperature of sampling, in nats; 0 without `SampledTokens`."""

    gap_N: Tensor
    """Divergence from the target times the strength with which the teachers speak."""
    divergence_NK: Tensor
    """Divergence from each teacher; 0 where it is silent."""
    target_entropy_N: Tensor
    """Entropy of the target in nats; of separate teachers the weighted mean."""
    student_entropy_N: Tensor


@dataclass
class _Gradients:
    """What flows to the student's hidden states, weight and bias, in float32; None where nobody wants it."""

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None

    def __bool__(self) -> bool:
        return any(x is not None for x in (self.hidden_NH, self.weight_VH, self.bias_V))

    @classmethod
    def zeros(cls, wanted: Sequence[bool], *of: Tensor | None) -> _Gradients:
        """For hidden states, weight and bias."""
        pairs = zip(wanted, of, strict=True)
        return cls(*(torch.zeros_like(x, dtype=torch.float32) if want and x is not None else None for want, x in pairs))

    def add(self, slope_NV: Tensor, rows: slice | Tensor, states_NH: Tensor, head: LMHead) -> None:
        """Add what a slope by the head's product at some of the tokens comes to, whose states are given."""
        if self.hidden_NH is not None:
            self.hidden_NH[rows] += slope_NV @ head.weight
        if self.weight_VH is not None:
            self.weight_VH.addmm_(slope_NV.T, states_NH.float())
        if self.bias_V is not None:
            self.bias_V += slope_NV.sum(0)

    def times(self, factor: Tensor, wanted: Sequence[bool]) -> _Gradients:
        """Their product with a factor, of those that are wanted."""
        pairs = zip(wanted, (self.hidden_NH, self.weight_VH, self.bias_V), strict=True)
        return _Gradients(*(x * factor if want and x is not None else None for want, x in pairs))

    def cast(self, *of: Tensor | None) -> list[Tensor | None]:
        """In the precision of what they are gradients of."""
        pairs = zip((self.hidden_NH, self.weight_VH, self.bias_V), of, strict=True)
        return [None if x is None or y is None else x.to(y.dtype) for x, y in pairs]


class _FusedResponse(torch.autograd.Function):
    """`sum_n c_n D_n` for counts c, and what was sampled; the gradient flows to hidden states, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        transforms: tuple[float, float | None],
        teachers: Sequence[TeacherDistribution],
        weights_NK: Tensor,
        counts_N: Tensor,
        objective: ResponseObjective,
        sampled: SampledTokens | None,
        with_entropies: bool,
    ) -> tuple[Tensor, ...]:
        head = LMHead(weight_VH, bias_V, *transforms).in_float32()
        gradients = _Gradients.zeros(ctx.needs_input_grad[:3], hidden_NH, weight_VH, bias_V)
        streams = _empty(hidden_NH, len(teachers))
        vocabulary = max([len(weight_VH), *(said.vocabulary for said in teachers)])
        for rows in token_chunks(len(hidden_NH), vocabulary, _MAX_LOGITS, _MIN_TOKENS):
            logits = head.logits(hidden_NH[rows])
            if sampled is not None:
                log_pi_NV = log_softmax(logits, sampled.temperature)
                streams.log_pi_N[rows] = log_pi_NV.gather(1, sampled.tokens_N[rows, None])[:, 0]
                streams.entropy_N[rows] = entropy(log_pi_NV)
            slope = _chunk(
                logits, [said.at(rows) for said in teachers], weights_NK[rows], objective, streams, rows, with_entropies
            )
            if gradients:
                slope = slope.mul_(counts_N[rows, None] * head.slope(logits))
                gradients.add(slope, rows, hidden_NH[rows], head)
        ctx.response, ctx.sampled, ctx.transforms = gradients, sampled, transforms
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, streams.entropy_N)
        ctx.mark_non_differentiable(*streams[2:])
        ctx.set_materialize_grads(False)
        return (streams.gap_N * counts_N).sum(), *streams

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, *d_streams: Tensor | None) -> Any:
        hidden_NH, weight_VH, bias_V, entropy_N = ctx.saved_tensors
        student, wanted = (hidden_NH, weight_VH, bias_V), ctx.needs_input_grad[:3]
        response: _Gradients = ctx.response
        gradients = _Gradients.zeros(wanted, *student) if d_total is None else response.times(d_total, wanted)
        d_log_pi_N, d_entropy_N = (torch.zeros_like(entropy_N) if d is None else d for d in d_streams[:2])
        counting = ((d_log_pi_N != 0) | (d_entropy_N != 0)).nonzero()[:, 0]
        if ctx.sampled is not None and len(counting):
            head = LMHead(weight_VH, bias_V, *ctx.transforms).in_float32()
            for chunk in token_chunks(len(counting), len(weight_VH), _MAX_LOGITS, _MIN_TOKENS):
                rows = counting[chunk]
                states_NH = hidden_NH[rows]
                logits = head.logits(states_NH)
                given = d_log_pi_N[rows], None if d_streams[1] is None else d_entropy_N[rows], entropy_N[rows]
                slope = _sampled_slope(logits, ctx.sampled.at(rows), *given)
                gradients.add(slope.mul_(head.slope(logits)), rows, states_NH, head)
        return *gradients.cast(*student), *(None,) * 7


def fused_response_loss(
    hidden_NH: Tensor,
    head: LMHead,
    teachers: Sequence[TeacherDistribution],
    weights_NK: Tensor,
    counts_N: Tensor,
    objective: ResponseObjective,
    sampled: SampledTokens | None = None,
    with_entropies: bool = False,
) -> tuple[Tensor, PerTokenStats]:
    """Sum over tokens of how far the student is from its teachers' target, each token times `counts_N`.

    Args:
        hidden_NH: The student's last hidden states.
        head: The student's head.
        teachers: What each teacher says at these tokens. Without `shared` a head has the student's vocabulary.
        weights_NK: Weight of each teacher at each token. Where one is silent it counts as 0.
        counts_N: How much each token counts in the sum.
        objective: Divergence, combination and temperature.
        sampled: What was sampled, to be scored along with it.
        with_entropies: Whether the entropies of target and student are computed; else they are 0.

    Returns:
        The sum, in nats, and the streams per token.
    """
    if not torch.is_grad_enabled():  # or the pass would compute gradients that nobody asks for
        hidden_NH, head = hidden_NH.detach(), head.detach()
    if teachers:
        speaks_NK = torch.stack([said.speaks_N for said in teachers], dim=1)
        weights_NK = weights_NK.masked_fill(~speaks_NK, 0.0)
    teachers = [said.in_float32() for said in teachers]
    with torch.autocast(hidden_NH.device.type, enabled=False):  # logits in half precision blur small divergences
        student = hidden_NH, head.weight, head.bias, (head.scale, head.softcap)
        outputs = _FusedResponse.apply(*student, teachers, weights_NK, counts_N, objective, sampled, with_entropies)  # type: ignore[no-untyped-call]
    return outputs[0], PerTokenStats(*outputs[1:])


def _empty(hidden_NH: Tensor, num_teachers: int) -> PerTokenStats:
    def zeros(*shape: int) -> Tensor:
        return hidden_NH.new_zeros(shape, dtype=torch.float32)

    size = len(hidden_NH)
    return PerTokenStats(zeros(size), zeros(size), zeros(size), zeros(size, num_teachers), zeros(size), zeros(size))


def _chunk(
    logits_NV: Tensor,
    teachers: Sequence[TeacherDistribution],
    weights_NK: Tensor,
    objective: ResponseObjective,
    streams: PerTokenStats,
    rows: slice,
    with_entropies: bool,
) -> Tensor:
    """Fill the streams of some tokens and return the divergence's derivative by the student's logits."""
    temperature = objective.temperature
    speaking = [k for k, said in enumerate(teachers) if said.speaks_N.any()]
    if _is_plain(objective, [teachers[k] for k in speaking]):
        return _forward_kls(
            logits_NV, {k: teachers[k] for k in speaking}, weights_NK, objective, streams, rows, with_entropies
        )
    pooled = [k for k in speaking if teachers[k].shared is None] if objective.combination.pools else []
    pooled = pooled if len(pooled) > 1 else []
    with torch.enable_grad():
        logits_NV = logits_NV.detach().requires_grad_()
        log_s_NV = log_softmax(logits_NV, temperature).clamp(min=LOG_ZERO)
        log_p_KNV = {k: teachers[k].log_probabilities(log_s_NV.detach(), temperature) for k in speaking}
        gap_N = log_s_NV[:, 0] * 0.0  # connected to the student even where no teacher speaks
        for k in speaking:
            with torch.set_grad_enabled(k not in pooled):
                apart_N = _apart(objective.divergence, log_s_NV, log_p_KNV[k], teachers[k].shared)
            streams.divergence_NK[rows, k] = apart_N.detach().clamp(min=0).masked_fill(~teachers[k].speaks_N, 0.0)
            if k not in pooled:
                gap_N = gap_N + weights_NK[:, k] * apart_N
        targets = [(log_p_KNV[k], weights_NK[:, k]) for k in speaking if k not in pooled]
        if pooled:
            stacked_KNV = torch.stack([log_p_KNV[k] for k in pooled])
            target_NV, strength_N = objective.combination.target(stacked_KNV, weights_NK[:, pooled])
            gap_N = gap_N + strength_N * objective.divergence(log_s_NV, target_NV)
            targets.append((target_NV, strength_N))
        (slope_NV,) = torch.autograd.grad(gap_N.sum(), logits_NV)
    streams.gap_N[rows] = gap_N.detach().clamp(min=0)  # rounding may take it below
    if with_entropies:
        streams.student_entropy_N[rows] = entropy(log_s_NV.detach())
        streams.target_entropy_N[rows] = _mean_entropy(targets) if targets else 0.0
    return slope_NV


def _is_plain(objective: ResponseObjective, speaking: Sequence[TeacherDistribution]) -> bool:
    """Whether it is forward KL from a mixture of whole distributions over the student's vocabulary."""
    whole = all(said.shared is None and not isinstance(said.said, TopKLogprobs) for said in speaking)
    plain = isinstance(objective.divergence, ForwardKL) and isinstance(objective.combination, Mixture)
    return plain and whole and bool(speaking)


def _forward_kls(
    logits_NV: Tensor,
    speaking: dict[int, TeacherDistribution],
    weights_NK: Tensor,
    objective: ResponseObjective,
    streams: PerTokenStats,
    rows: slice,
    with_entropies: bool,
) -> Tensor:
    """Do what `_chunk` does where the slope is known without autograd, in half as many reads and writes.

    By the logits z the slope of KL(p || softmax(z / T)) is `(softmax(z / T) - p) / T`.
    """
    log_s_NV = log_softmax(logits_NV, objective.temperature).clamp_(min=LOG_ZERO)
    weights_NJ = weights_NK[:, list(speaking)].to(log_s_NV)
    strength_N1 = weights_NJ.sum(1, keepdim=True)
    p_NV = torch.zeros_like(log_s_NV)
    for k, share_N1 in zip(
        speaking, (weights_NJ / strength_N1.clamp(min=MIN_PROBABILITY)).split(1, dim=1), strict=True
    ):
        log_p_NV = speaking[k].log_probabilities(log_s_NV, objective.temperature)
        p_k_NV = log_p_NV.exp()
        gap_N = apart_N = torch.linalg.vecdot(p_k_NV, log_p_NV.sub_(log_s_NV)).clamp_(min=0)
        streams.divergence_NK[rows, k] = apart_N.masked_fill(~speaking[k].speaks_N, 0.0)
        p_NV.addcmul_(p_k_NV, share_N1)
    log_p_NV = p_NV.clamp(min=MIN_PROBABILITY).log_()
    if with_entropies:
        streams.student_entropy_N[rows] = entropy(log_s_NV)
        streams.target_entropy_N[rows] = -torch.linalg.vecdot(p_NV, log_p_NV)
    if len(speaking) > 1:  # of one, the difference of equal distributions is 0 exactly
        gap_N = torch.linalg.vecdot(p_NV, log_p_NV.sub_(log_s_NV)).clamp_(min=0)
    streams.gap_N[rows] = strength_N1[:, 0] * gap_N
    return log_s_NV.exp_().sub_(p_NV).mul_(strength_N1 / objective.temperature)


def _sampled_slope(
    logits_NV: Tensor, sampled: SampledTokens, d_log_pi_N: Tensor, d_entropy_N: Tensor | None, entropy_N: Tensor
) -> Tensor:
    """Derivative by the logits of what goes through log-probabilities and entropies.

    By the logits z the slope of log pi(y) is `(1[y] - pi) / T`, that of the entropy H `-pi * (log pi + H) / T`.
    """
    log_pi_NV = log_softmax(logits_NV, sampled.temperature).clamp_(min=LOG_ZERO)
    factor_NV: Tensor = d_log_pi_N[:, None]
    if d_entropy_N is not None:
        factor_NV = factor_NV + d_entropy_N[:, None] * (log_pi_NV + entropy_N[:, None])
    slope_NV = log_pi_NV.exp_().mul_(-factor_NV)
    return slope_NV.scatter_add_(1, sampled.tokens_N[:, None], d_log_pi_N[:, None]).div_(sampled.temperature)


def _mean_entropy(targets: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean entropy of targets `[N, V]`, each by its weight `[N]`; 0 where all weights are."""
    weights_JN = torch.stack([weight_N for _, weight_N in targets])
    entropies_JN = torch.stack([entropy(target_NV) for target_NV, _ in targets])
    return (weights_JN * entropies_JN).sum(0) / weights_JN.sum(0).clamp(min=1e-12)


def _apart(
    divergence: Divergence, student_NV: Tensor, teacher_NV: Tensor, shared: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Divergence from one teacher, `[N]`.

    Between vocabularies that differ it is taken over the shared tokens and one outcome for all others, and the
    probabilities of the others are compared in order of their size (Boizard et al. 2024, ULD; as in TRL's GOLD).
    """
    if shared is None:
        return divergence(student_NV, teacher_NV)
    ours_J, theirs_J = shared
    student_NJ, rest_s_NV = _split(student_NV, ours_J)
    teacher_NJ, rest_t_NV = _split(teacher_NV, theirs_J)
    return divergence(student_NJ, teacher_NJ) + 0.5 * sorted_difference(rest_s_NV, rest_t_NV)


def _split(log_p_NV: Tensor, tokens_J: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen tokens and of all others together, and the largest of the others one by one."""
    chosen_NJ = with_tail(log_p_NV, tokens_J.expand(len(log_p_NV), -1), MIN_TAIL_LOGPROB)  # there may be no others
    others_NV = log_p_NV.exp().index_fill(-1, tokens_J, 0.0)
    return chosen_NJ, others_NV.topk(min(_RANKED, others_NV.shape[-1]), dim=-1).values
