"""The response signal over labels: the student learns the teachers' distribution over the labels of a prompt.

The words w that say a label l are a completion of the prompt x. A model's distribution over the labels is
`p(l | x) = softmax_l(s_l / temperature)`, with the score `s_l = sum_t log pi(w_t | x, w_<t)`. No tokens are aligned, so
that teachers of any tokenizer teach alike, and divergences and combinations are those over a vocabulary of L.

Shapes: P prompts, L labels, K teachers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rld.losses.objective import ResponseObjective
from rld.losses.teacher_distribution import LOG_ZERO, log_softmax


class LabelDivergence(NamedTuple):
    """Divergences over the labels of each prompt, in nats."""

    target_P: Tensor
    """From the teachers' target, times the target's weight, through which the gradient flows."""
    teachers_PK: Tensor
    """From each teacher, without gradient."""


def label_divergence(
    scores_PL: Tensor, teachers_KPL: Tensor, weights_PK: Tensor, objective: ResponseObjective
) -> LabelDivergence:
    """Return the student's divergences from the teachers over labels.

    Args:
        scores_PL: The student's scores; gradients flow to them.
        teachers_KPL: The teachers' scores, calibrated where they are to be; without gradient.
        weights_PK: Weight of each teacher on each prompt, 0 where it does not teach.
        objective: Divergence, combination and temperature.
    """
    divergence, combination = objective.divergence, objective.combination
    log_s_PL = log_softmax(scores_PL, objective.temperature).clamp(min=LOG_ZERO)
    log_p_KPL = log_softmax(teachers_KPL.to(scores_PL), objective.temperature).clamp(min=LOG_ZERO)
    pools = combination.pools and len(log_p_KPL) > 1
    with torch.set_grad_enabled(not pools and torch.is_grad_enabled()):
        each_PK = torch.stack([divergence(log_s_PL, log_p_PL) for log_p_PL in log_p_KPL], dim=1)
    weights_PK = weights_PK.to(scores_PL)
    if pools:
        target_PL, weight_P = combination.target(log_p_KPL, weights_PK)
        total_P = weight_P * divergence(log_s_PL, target_PL)
    else:
        total_P = (weights_PK * each_PK).sum(1)
    return LabelDivergence(total_P, each_PK.detach().clamp(min=0))  # rounding may make it negative


def label_cross_entropy(scores_PL: Tensor, gold_P: Tensor) -> Tensor:
    """Return `-log p(gold | x)` in nats, `[P]`, at temperature 1; 0 where `gold_P` is -1."""
    losses_P: Tensor = -scores_PL.log_softmax(-1).gather(1, gold_P.clamp(min=0)[:, None])[:, 0]
    return losses_P.masked_fill(gold_P < 0, 0.0)
