"""Any divergence over a whole vocabulary, without ever holding its logits.

TRL's kernel does this for the divergences that one interpolation reaches; this does it for the others. Tokens and
vocabulary are walked in tiles: a first sweep finds both normalisers, a second sums the divergence, and the backward
computes each tile again. With `f` the divergence's summand, `a = log p_student` and `D = sum_v f(a_v, b_v)`, the
gradient with respect to the student's logits is `f'_v - p_v sum_u f'_u`, where `f'` is the derivative of `f` by `a`.

Shapes: N tokens, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rld.divergences import AnyDivergence

_TOKENS, _VOCABULARY = 2048, 16384
"""Sides of a tile: 128 MiB of float32 for each model."""


class Projection(NamedTuple):
    """How hidden states become logits: `softcap(scale * (h @ weight.T + bias)) / temperature`."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    temperature: float

    def logits(self, hidden_NH: Tensor, columns: slice) -> Tensor:
        """Logits of the tokens `columns`, float32."""
        z = hidden_NH.float() @ self.weight[columns].float().T
        if self.bias is not None:
            z = z + self.bias[columns].float()
        z = z * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z / self.temperature

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of these logits by `h @ weight.T`."""
        slope: Tensor | float = self.scale / self.temperature
        if self.softcap is not None:
            slope = slope * (1 - (logits * self.temperature / self.softcap) ** 2)
        return slope


def _ranges(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _log_normaliser(hidden_NH: Tensor, head: Projection) -> Tensor:
    parts = [head.logits(hidden_NH, columns).logsumexp(-1) for columns in _ranges(len(head.weight), _VOCABULARY)]
    return torch.stack(parts).logsumexp(0)


def _summand(divergence: AnyDivergence, student_NV: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence's summand and its derivative by the student's log-probability, tile by tile."""
    with torch.enable_grad():
        student_NV = student_NV.detach().requires_grad_()
        value_NV = divergence.summand(student_NV, teacher_NV)
        (slope_NV,) = torch.autograd.grad(value_NV.sum(), student_NV)
    return value_NV.detach(), slope_NV


class TiledDivergence(torch.autograd.Function):
    """`divergence` of a student from a teacher at each token, `[N]`, from hidden states `[N, H]` and heads.

    The gradient flows to the student's hidden states, weight and bias.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        teacher_NH: Tensor,
        student: tuple[float, float | None],
        teacher: Projection,
        divergence: AnyDivergence,
    ) -> Tensor:
        head = Projection(weight_VH, bias_V, *student, teacher.temperature)
        value_N, slopes_N, ours_N, theirs_N = (
            hidden_NH.new_zeros(len(hidden_NH), dtype=torch.float32) for _ in range(4)
        )
        for rows in _ranges(len(hidden_NH), _TOKENS):
            ours_N[rows] = _log_normaliser(hidden_NH[rows], head)
            theirs_N[rows] = _log_normaliser(teacher_NH[rows], teacher)
            for columns in _ranges(len(weight_VH), _VOCABULARY):
                log_s = head.logits(hidden_NH[rows], columns) - ours_N[rows, None]
                log_t = teacher.logits(teacher_NH[rows], columns) - theirs_N[rows, None]
                value, slope = _summand(divergence, log_s, log_t)
                value_N[rows] += value.sum(-1)
                slopes_N[rows] += slope.sum(-1)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, teacher_NH, ours_N, theirs_N, slopes_N)
        ctx.student, ctx.teacher, ctx.divergence = student, teacher, divergence
        return value_N.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        hidden_NH, weight_VH, bias_V, teacher_NH, ours_N, theirs_N, slopes_N = ctx.saved_tensors
        scale, softcap = ctx.student
        head = Projection(weight_VH, bias_V, scale, softcap, ctx.teacher.temperature)
        d_hidden = torch.zeros_like(hidden_NH, dtype=torch.float32)
        d_weight = torch.zeros_like(weight_VH, dtype=torch.float32)
        d_bias = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for rows in _ranges(len(hidden_NH), _TOKENS):
            for columns in _ranges(len(weight_VH), _VOCABULARY):
                logits = head.logits(hidden_NH[rows], columns)
                log_s = logits - ours_N[rows, None]
                log_t = ctx.teacher.logits(teacher_NH[rows], columns) - theirs_N[rows, None]
                _, slope = _summand(ctx.divergence, log_s, log_t)
                tile = (slope - log_s.exp() * slopes_N[rows, None]) * gradients[0][rows, None].float()
                tile = tile * head.slope(logits)
                d_hidden[rows] += tile @ weight_VH[columns].float()
                d_weight[columns] += tile.T @ hidden_NH[rows].float()
                if d_bias is not None:
                    d_bias[columns] += tile.sum(0)
        return (
            d_hidden.to(hidden_NH.dtype),
            d_weight.to(weight_VH.dtype),
            None if bias_V is None or d_bias is None else d_bias.to(bias_V.dtype),
            *(None,) * 4,
        )
