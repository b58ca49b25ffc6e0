"""The response loss and the policy's log-probabilities in one pass over the vocabulary, without a batch's logits.

The tokens are taken in chunks. Of a chunk the logits of the student and of each teacher are computed once. The
student's give the log-probability of the sampled token and the entropy; with the teachers' they give the divergence
from the target. The divergence's gradient with respect to the student's hidden states and output head is computed at
once, while the chunk's logits exist. Therefore the weight of each token in the loss must be known beforehand, and the
pass returns the weighted sum, through which the gradient flows, beside values per token without gradient. The gradient
through the sampled token's log-probability is computed in the backward pass, because its weight there depends on the
log-probability itself.

Products with an output head: one for the student and one for each teacher, and two for the gradients. Where the sampled
tokens' log-probabilities have gradients, a chunk's logits and the divergence's derivative are kept for the backward
pass, so that both gradients take the same two products. They are kept of as many tokens as take no more memory than
the head itself, and no more than a fixed bound (`_num_kept`). For other tokens the two gradients take three products
more, with the logits computed again, and only for tokens whose log-probability has a gradient.

Shapes: N tokens, H width, V vocabulary, K teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rld.losses import logit_memory
from rld.losses.chunk_divergence import StudentProbabilities, chunk_divergence
from rld.losses.objective import ResponseObjective
from rld.losses.teacher_distribution import LOG_ZERO, TeacherDistribution, log_softmax, softmax
from rld.models.heads import LMHead, add_product, product
from rld.utils.tensors import token_chunks

_MAX_LOGITS = 1 << 21
"""Logits of one model held at a time: 8 MiB in float32, which fits into a processor's cache."""

_MAX_LOGITS_ON_GPU = logit_memory.BYTES_OF_A_CHUNK // 4
"""The same on a GPU."""

_MIN_TOKENS = 64
"""Tokens of a chunk at least: with fewer, reading the output heads from memory takes longer than the products."""


@dataclass(frozen=True)
class SampledTokens:
    """The tokens that the student sampled."""

    ids_N: Tensor
    temperature: float
    """Temperature at which they were sampled, above 0."""
    keeps_logits: bool = True
    """Whether logits are kept for a gradient through their log-probabilities; without, one costs more products."""


class PerTokenStats(NamedTuple):
    """Values per token in nats; the first two with gradient, the others without."""

    sampled_logprob_N: Tensor
    """Log-probability of the sampled token; 0 without `SampledTokens`."""
    sampling_entropy_N: Tensor
    """Entropy of the student at the temperature of sampling; 0 without `SampledTokens`."""

    target_divergence_N: Tensor
    """Divergence from the teachers' target, times the target's weight."""
    teacher_divergence_NK: Tensor
    """Divergence from each teacher; 0 where the teacher is not valid."""
    target_entropy_N: Tensor
    """Entropy of the target, of teachers that are not pooled the weighted mean; 0 if not requested."""
    student_entropy_N: Tensor
    """Entropy of the student at the objective's temperature; 0 if not requested."""

    @classmethod
    def zeros(cls, num_tokens: int, num_teachers: int, device: torch.device) -> PerTokenStats:
        shapes = [(num_teachers,) if name.endswith("_NK") else () for name in cls._fields]
        return cls(*(torch.zeros(num_tokens, *shape, device=device) for shape in shapes))


@dataclass
class _StudentGradients:
    """Gradients with respect to the student's hidden states, head weight and head bias, in float32; None: not
    needed."""

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def zeros(cls, needs_gradient: Sequence[bool], student: Sequence[Tensor | None]) -> _StudentGradients:
        """Zero gradients of those among hidden states, weight and bias that need one."""
        pairs = zip(needs_gradient, student, strict=True)
        return cls(*(torch.zeros_like(x, dtype=torch.float32) if need and x is not None else None for need, x in pairs))

    def add(
        self, derivative_NV: Tensor, logits_NV: Tensor, rows: slice | Tensor, states_NH: Tensor, head: LMHead
    ) -> None:
        """Add the contribution of some tokens.

        Args:
            derivative_NV: Derivative of the loss with respect to their logits; it is overwritten.
            logits_NV: Their logits.
            rows: Which tokens.
            states_NH: Their hidden states.
            head: The student's, with logits in float32.
        """
        derivative_NV.mul_(head.logit_derivative(logits_NV))
        if self.hidden_NH is not None:
            self.hidden_NH[rows] += product(derivative_NV, head.weight)
        if self.weight_VH is not None:
            add_product(self.weight_VH, derivative_NV.T, states_NH.to(head.weight.dtype))
        if self.bias_V is not None:
            self.bias_V += derivative_NV.sum(0)

    def times(self, factor: Tensor, needs_gradient: Sequence[bool]) -> _StudentGradients:
        """Those that are needed, times a factor."""
        pairs = zip(needs_gradient, (self.hidden_NH, self.weight_VH, self.bias_V), strict=True)
        return _StudentGradients(*(x * factor if need and x is not None else None for need, x in pairs))

    def cast(self, student: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients in the precision of what they are gradients of."""
        pairs = zip((self.hidden_NH, self.weight_VH, self.bias_V), student, strict=True)
        return [None if x is None or y is None else x.to(y.dtype) for x, y in pairs]


@dataclass(frozen=True)
class _PassInputs:
    """The inputs of a pass through which no gradient flows; see `fused_response_loss`."""

    head_scale: float
    head_softcap: float | None
    teachers: Sequence[TeacherDistribution]
    weights_NK: Tensor
    counts_N: Tensor
    objective: ResponseObjective
    sampled_tokens: SampledTokens | None
    with_entropies: bool

    @property
    def keeps_logits(self) -> bool:
        return self.sampled_tokens is not None and self.sampled_tokens.keeps_logits

    def head(self, weight_VH: Tensor, bias_V: Tensor | None) -> LMHead:
        """The student's head, with logits in float32."""
        return LMHead(weight_VH, bias_V, self.head_scale, self.head_softcap).with_float32_logits()


class _FusedResponse(torch.autograd.Function):
    """`sum_n counts_n D_n` and the values per token; the gradient flows to hidden states, head weight and bias."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, inputs: _PassInputs
    ) -> tuple[Tensor, ...]:
        head, teachers = inputs.head(weight_VH, bias_V), inputs.teachers
        stats = PerTokenStats.zeros(len(hidden_NH), len(teachers), hidden_NH.device)
        needs_gradient = ctx.needs_input_grad[:3]
        gradients: _StudentGradients | None = None
        num_kept = _num_kept(weight_VH, is_trained=needs_gradient[1]) if inputs.keeps_logits else 0
        kept_tensors: list[Tensor] = []
        vocabulary = max([len(weight_VH), *(teacher.num_logits for teacher in teachers)])
        chunks = _chunks(hidden_NH, vocabulary)
        for rows, valid in zip(chunks, _valid_teachers(teachers, chunks), strict=True):
            logits_NV = head.logits(hidden_NH[rows])
            student = StudentProbabilities.of(logits_NV, inputs.objective.temperature)
            if inputs.sampled_tokens is not None:
                _add_sampled(stats, rows, logits_NV, student, inputs)
            chunk = chunk_divergence(
                student,
                {k: teachers[k].at(rows) for k in valid},
                inputs.weights_NK[rows],
                inputs.objective.of_tokens(rows),
                with_entropies=inputs.with_entropies,
            )
            for name in ("target_divergence_N", "teacher_divergence_NK", "target_entropy_N", "student_entropy_N"):
                getattr(stats, name)[rows] = getattr(chunk, name)
            if any(needs_gradient):
                derivative_NV = chunk.derivative_NV.mul_(inputs.counts_N[rows, None])
                if rows.stop <= num_kept:
                    kept_tensors += [logits_NV, derivative_NV]
                else:
                    gradients = gradients or _StudentGradients.zeros(needs_gradient, (hidden_NH, weight_VH, bias_V))
                    gradients.add(derivative_NV, logits_NV, rows, hidden_NH[rows], head)
        ctx.response_gradients = gradients
        ctx.kept_rows, ctx.inputs = chunks[: len(kept_tensors) // 2], inputs
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, stats.sampling_entropy_N, *kept_tensors)
        ctx.mark_non_differentiable(*stats[2:])
        ctx.set_materialize_grads(False)
        return (stats.target_divergence_N * inputs.counts_N).sum(), *stats

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None, *d_stats: Tensor | None) -> Any:
        hidden_NH, weight_VH, bias_V, entropy_N, *kept_tensors = ctx.saved_tensors
        student, needs_gradient, inputs = (hidden_NH, weight_VH, bias_V), ctx.needs_input_grad[:3], ctx.inputs
        head = inputs.head(weight_VH, bias_V)
        if d_total is None or ctx.response_gradients is None:
            gradients = _StudentGradients.zeros(needs_gradient, student)
        else:
            gradients = ctx.response_gradients.times(d_total, needs_gradient)
        d_logprob_N = torch.zeros_like(entropy_N) if d_stats[0] is None else d_stats[0]
        sampled_gradient = _SampledGradient(inputs.sampled_tokens, d_logprob_N, d_stats[1], entropy_N)
        for rows, logits_NV, derivative_NV in zip(ctx.kept_rows, kept_tensors[::2], kept_tensors[1::2], strict=True):
            total_NV = sampled_gradient.derivative(logits_NV, rows)
            if d_total is not None:
                total_NV.addcmul_(derivative_NV, d_total)
            gradients.add(total_NV, logits_NV, rows, hidden_NH[rows], head)
        rows_n = sampled_gradient.tokens_after(ctx.kept_rows[-1].stop if kept_tensors else 0)
        for chunk in _chunks(rows_n, len(weight_VH)):
            rows = rows_n[chunk]
            states_NH = hidden_NH[rows]
            logits_NV = head.logits(states_NH)
            gradients.add(sampled_gradient.derivative(logits_NV, rows), logits_NV, rows, states_NH, head)
        return *gradients.cast(student), None


def _add_sampled(
    stats: PerTokenStats, rows: slice, logits_NV: Tensor, student: StudentProbabilities, inputs: _PassInputs
) -> None:
    """Add log-probabilities of sampled tokens and entropies of a chunk.

    Args:
        stats: To which they are added.
        rows: Which tokens.
        logits_NV: Of these.
        student: Distributions at the objective's temperature, which is mostly that of sampling.
        inputs: Those of the pass.
    """
    assert inputs.sampled_tokens is not None
    if inputs.sampled_tokens.temperature != inputs.objective.temperature:
        student = StudentProbabilities.of(logits_NV, inputs.sampled_tokens.temperature)
    stats.sampled_logprob_N[rows] = student.log_NV.gather(1, inputs.sampled_tokens.ids_N[rows, None])[:, 0]
    stats.sampling_entropy_N[rows] = student.entropy()


def _num_kept(weight_VH: Tensor, is_trained: bool) -> int:
    """Return of how many tokens, at most, what the backward pass needs is kept: logits and a derivative, 8 V bytes.

    They take at most `KEPT_BYTES`, and at most what the whole head takes in float32: 16 V H bytes where it is trained,
    with its gradient and the two moments of Adam, and 4 V H where it is frozen.
    """
    head_bytes = (16 if is_trained else 4) * weight_VH.numel()
    return min(head_bytes, logit_memory.KEPT_BYTES) // (8 * max(len(weight_VH), 1))


def _chunks(tokens_N: Tensor, vocabulary: int) -> list[slice]:
    """Split tokens into chunks of as many logits as are held at a time."""
    max_logits = _MAX_LOGITS_ON_GPU if tokens_N.is_cuda else _MAX_LOGITS
    return list(token_chunks(len(tokens_N), vocabulary, max_logits, _MIN_TOKENS))


def _valid_teachers(teachers: Sequence[TeacherDistribution], chunks: Sequence[slice]) -> list[list[int]]:
    """Return the numbers of the teachers that are valid at some token of each chunk.

    All chunks are asked at once, because each question to a GPU waits until it has done all that it was told before.
    """
    if not teachers or not chunks:
        return [[] for _ in chunks]
    valid_KC = torch.stack([teacher.valid_N[rows].any() for teacher in teachers for rows in chunks])
    valid = valid_KC.view(len(teachers), len(chunks)).T.tolist()
    return [[k for k, is_valid in enumerate(row) if is_valid] for row in valid]


@dataclass(frozen=True)
class _SampledGradient:
    """The gradient with respect to log-probabilities and entropies of the sampled tokens; see `PerTokenStats`."""

    tokens: SampledTokens | None
    d_logprob_N: Tensor
    d_entropy_N: Tensor | None
    entropy_N: Tensor

    def tokens_after(self, first: int) -> Tensor:
        """The numbers of the tokens, from the first on, whose gradient is not 0."""
        if self.tokens is None:
            return torch.zeros(0, dtype=torch.long, device=self.d_logprob_N.device)
        is_trained_N = self.d_logprob_N != 0
        if self.d_entropy_N is not None:
            is_trained_N = is_trained_N | (self.d_entropy_N != 0)
        return is_trained_N[first:].nonzero()[:, 0] + first

    def derivative(self, logits_NV: Tensor, rows: slice | Tensor) -> Tensor:
        """The derivative with respect to the logits of some of the tokens.

        With respect to the logits z, the derivative of log pi(y) is `(1[y] - pi) / T`, that of the entropy H is
        `-pi (log pi + H) / T`.
        """
        assert self.tokens is not None
        d_N1 = self.d_logprob_N[rows, None] / self.tokens.temperature
        if self.d_entropy_N is None:
            derivative_NV = softmax(logits_NV, self.tokens.temperature).mul_(-d_N1)
        else:
            log_pi_NV = log_softmax(logits_NV, self.tokens.temperature).clamp_(min=LOG_ZERO)
            d_entropy_N1 = self.d_entropy_N[rows, None] / self.tokens.temperature
            factor_NV = d_N1 + d_entropy_N1 * (log_pi_NV + self.entropy_N[rows, None])
            derivative_NV = log_pi_NV.exp_().mul_(-factor_NV)
        return derivative_NV.scatter_add_(1, self.tokens.ids_N[rows, None], d_N1)


def fused_response_loss(
    hidden_NH: Tensor,
    head: LMHead,
    teachers: Sequence[TeacherDistribution],
    *,
    weights_NK: Tensor,
    counts_N: Tensor,
    objective: ResponseObjective,
    sampled_tokens: SampledTokens | None = None,
    with_entropies: bool = False,
) -> tuple[Tensor, PerTokenStats]:
    """Return the sum over tokens of the divergence from the teachers' target, each token times `counts_N`.

    Args:
        hidden_NH: The student's last hidden states.
        head: The student's output head.
        teachers: Each teacher's distributions at these tokens.
        weights_NK: Weight of each teacher at each token, at least 0; it counts as 0 where the teacher is not valid.
        counts_N: How much each token counts in the sum.
        objective: Divergence, combination and temperature.
        sampled_tokens: The sampled tokens, if their log-probabilities and the entropy are computed in the same pass.
        with_entropies: Whether to compute the entropies of target and student.

    Returns:
        The sum `[]` in nats, and the values per token.
    """
    if not torch.is_grad_enabled():  # the forward would compute gradients of tensors that require one
        hidden_NH, head = hidden_NH.detach(), head.detach()
    if teachers:
        valid_NK = torch.stack([teacher.valid_N for teacher in teachers], dim=1)
        weights_NK = weights_NK.masked_fill(~valid_NK, 0.0)
    inputs = _PassInputs(
        head_scale=head.scale,
        head_softcap=head.softcap,
        teachers=[teacher.with_float32_logits() for teacher in teachers],
        weights_NK=weights_NK,
        counts_N=counts_N,
        objective=objective,
        sampled_tokens=sampled_tokens,
        with_entropies=with_entropies,
    )
    with torch.autocast(hidden_NH.device.type, enabled=False):  # logits in half precision blur small divergences
        outputs = _FusedResponse.apply(hidden_NH, head.weight, head.bias, inputs)  # type: ignore[no-untyped-call]
    return outputs[0], PerTokenStats(*outputs[1:])
