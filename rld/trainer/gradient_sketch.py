"""Random sketches of gradients: short vectors whose inner products are on average those of the gradients.

The gradient is the one with respect to a matrix M that would sit between the student's last hidden states and its
output head, `h -> h + h M`, at M = 0. It is `sum_t h_t g_t'`, where g_t is the gradient with respect to the state h_t
of token t. M is shared by all tokens, so gradients of different prompts can be compared, and no backward pass through
the network is needed, because the g_t are measured anyway (`UpdateStatistics.add_gradient`). The approximation is that
gradients with respect to the blocks below are left out.

A sketch of that matrix has D entries, `sum_t (h_t . u_d)(g_t . v_d) / sqrt(D)`, where u_d and v_d are vectors of random
signs: an AMS sketch (Alon, Matias and Szegedy 1996) with the signs `u_d v_d'`.

Shapes: N tokens, H width, V vocabulary, D sketch, P groups of completions (one prompt each), M groups of one skill,
G signals in the order of `SIGNALS`.
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
from rld.utils.tensors import token_chunks

SKETCH_SIZE = 256
"""D: the norm of a sketch is within about a sixth of the gradient's."""

_MAX_LOGITS = 1 << 23
"""Logits held at a time: 32 MiB in float32."""


def random_signs(width: int, seed: int) -> Tensor:
    """Return the random signs u and v of a sketch, `[2, H, D]`, the same for a seed on all devices and processes."""
    bits_2HD = torch.randint(0, 2, (2, width, SKETCH_SIZE), generator=torch.Generator().manual_seed(seed))
    return bits_2HD.float() * 2 - 1


def sketch(hidden_NH: Tensor, gradient_NH: Tensor, signs_2HD: Tensor) -> Tensor:
    """Return each token's summand of the sketch, `[N, D]`."""
    return (hidden_NH.float() @ signs_2HD[0]) * (gradient_NH.float() @ signs_2HD[1]) / math.sqrt(SKETCH_SIZE)


def likelihood_gradient(head: LMHead, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Return the gradient of the targets' negative log-likelihood with respect to the states, `[N, H]`."""
    gradients = []
    for rows in token_chunks(len(hidden_NH), len(head.weight), _MAX_LOGITS):
        with torch.enable_grad():
            states_nH = hidden_NH[rows].detach().requires_grad_()
            loss = cross_entropy(head.logits(states_nH), targets_N[rows], reduction="sum")
        gradients.append(torch.autograd.grad(loss, states_nH)[0])
    return torch.cat(gradients)


def gradient_stats(sums_PGD: Tensor, counts_PG: Tensor, member_P: Tensor, gold_D: Tensor | None) -> GradientStats:
    """Return inner products and noise of the signals' gradients on one skill, and their cosines with gold answers'.

    A signal's gradient is the mean over the tokens of the update that count for it, as in the loss. So of a skill with
    M groups the sample of group m is `M * sums_m / counts`, where counts is summed over all skills' groups. The noise
    is the squared standard error of the mean of the M samples, summed over the sketch's entries. A signal with fewer
    than two groups, or without any gradient, is left out.

    Args:
        sums_PGD: Sketches, summed over each group's tokens.
        counts_PG: Tokens that count.
        member_P: Which groups belong to the skill.
        gold_D: Sketch of the gold answers' gradient. None: no cosines.
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
    for first, second in itertools.product(means, means):
        inner[first][second] = (means[first] @ means[second]).item()
    aligned: dict[Signal, float] = {}
    if gold_D is not None and gold_D.any():
        aligned = {s: (mean @ gold_D / (mean.norm() * gold_D.norm())).item() for s, mean in means.items()}
    return GradientStats(inner, noise, gold_cosine=aligned)
