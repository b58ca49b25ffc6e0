"""Small sketches of gradients: enough to tell how large they are, how noisy, and where they lead.

The gradient is that with respect to a linear map between the student's last hidden states and its output head,
`h -> h + h M` at M = 0: the matrix `sum_t h_t g_t'`, g_t being the gradient with respect to the state at token t. All
tokens share M, so gradients of different prompts can be compared, and it needs no backward pass through the
network: the g_t are what `even_out` measures anyway. What the blocks below would learn is not in it; that is the
approximation.

A sketch of that matrix has D numbers, `sum_t (h_t . u_d)(g_t . v_d) / sqrt(D)` with random signs u_d and v_d, and inner
products of sketches are on average those of the matrices.

Shapes: N tokens, H width, D sketch, P groups of completions (one prompt each), G signals in the order of `SIGNALS`.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rld.controllers.observation import GradientStats
from rld.models.heads import LMHead
from rld.types import SIGNALS, Signal

SIZE = 256
"""D: a norm is met within about a sixth, at each tick by other signs."""

_LOGITS = 1 << 23
"""Logits at a time: 32 MiB of float32."""


def signs(width: int, seed: int) -> Tensor:
    """Return the random signs of a sketch, `[2, H, D]`: the same for the same seed, on every device and process."""
    drawn_2HD = torch.randint(0, 2, (2, width, SIZE), generator=torch.Generator().manual_seed(seed))
    return drawn_2HD.float() * 2 - 1


def sketch(hidden_NH: Tensor, gradient_NH: Tensor, signs_2HD: Tensor) -> Tensor:
    """Return each token's part of the sketch, `[N, D]`; they add up."""
    return (hidden_NH.float() @ signs_2HD[0]) * (gradient_NH.float() @ signs_2HD[1]) / math.sqrt(SIZE)


def likelihood_gradient(head: LMHead, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Return the gradient of the targets' negative log-likelihood with respect to the states, `[N, H]`."""
    gradients = []
    step = max(1, _LOGITS // len(head.weight))
    for states, targets in zip(hidden_NH.split(step), targets_N.split(step), strict=True):
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            loss = cross_entropy(head.logits(leaf), targets, reduction="sum")
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    return torch.cat(gradients)


def gradient_stats(sums_PGD: Tensor, counts_PG: Tensor, member_P: Tensor, gold_D: Tensor | None) -> GradientStats:
    """Return what one skill's groups say about the signals.

    Each signal's gradient is the mean over the update's tokens that count for it, as in the loss, so group m's sample
    of a skill with M groups is `M * sums_m / counts` with the count over all skills.

    Args:
        sums_PGD: Sketches, summed over each group's tokens.
        counts_PG: Tokens that count.
        member_P: Which groups are the skill's.
        gold_D: Sketch of the gold answers' gradient; None: not asked for.
    """
    means: dict[Signal, Tensor] = {}
    noise: dict[Signal, float] = {}
    for i, signal in enumerate(SIGNALS):
        counted_P = member_P & (counts_PG[:, i] > 0)
        num = int(counted_P.sum())
        samples_MD = num * sums_PGD[counted_P, i] / counts_PG[:, i].sum().clamp(min=1)
        if num < 2 or not samples_MD.any():
            continue
        means[signal] = samples_MD.mean(0)
        noise[signal] = ((samples_MD - means[signal]).pow(2).sum() / (num * (num - 1))).item()
    inner: dict[Signal, dict[Signal, float]] = {signal: {} for signal in means}
    for one, two in itertools.product(means, means):
        inner[one][two] = (means[one] @ means[two]).item()
    aligned: dict[Signal, float] = {}
    if gold_D is not None and gold_D.any():
        aligned = {s: (mean @ gold_D / (mean.norm() * gold_D.norm())).item() for s, mean in means.items()}
    return GradientStats(inner, noise, aligned)
