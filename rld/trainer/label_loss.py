"""The response signal and gold answers of a micro-batch whose completions are labels, and what they show.

A distribution over labels is one value per prompt. It stands at the first token of the prompt's first label, so that
means and sums over tokens are those over prompts (`rollout.batch.response_mask`).

Shapes: B completions, T completion tokens, P prompts, L labels, K teachers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rld.controllers.statistics import AttemptCounts, GateCounts
from rld.losses.labels import label_cross_entropy, label_divergence
from rld.losses.response import ResponseSettings
from rld.rollout.batch import RolloutBatch, label_rows, loss_mask
from rld.rollout.label_scores import predicted_labels


@dataclass(frozen=True)
class LabelTerms:
    """What a micro-batch adds to the loss, per prompt, in nats."""

    response_loss: Tensor
    """`[]`, the weighted sum of the divergences from the teachers' targets, through which the gradient flows."""
    target_divergence_BT: Tensor
    """Divergence from the teachers' target, without gradient and without the signal's weight."""
    teacher_divergence_BKT: Tensor
    """Divergence from each teacher, without gradient."""
    gold_loss_BT: Tensor
    """Cross-entropy of the gold label, with gradient; 0 where the row has none."""
    scores_B: Tensor
    """The student's score of each label: the log-probability of its words, without gradient."""


def label_terms(batch: RolloutBatch, response: ResponseSettings | None) -> LabelTerms:
    """Return the terms of a micro-batch, which has all labels of each of its prompts.

    Args:
        batch: The micro-batch, with the student's log-probabilities.
        response: The objective and the weights of the response signal. None: it is off.
    """
    mask_BT, weights_BK = loss_mask(batch), batch["teacher_weights"]
    scores_B = batch["log_pi"].masked_fill(mask_BT == 0, 0.0).sum(1)
    response_loss = scores_B.sum() * 0.0
    target_BT, gold_BT = torch.zeros_like(batch["log_pi"]), torch.zeros_like(batch["log_pi"])
    teacher_BKT = target_BT[:, None].repeat(1, weights_BK.shape[1], 1)
    for rows_PL in label_rows(batch):
        scores_PL, first_P = scores_B[rows_PL], rows_PL[:, 0]
        gold_P = label_cross_entropy(scores_PL, batch["gold_ids"][first_P])
        gold_BT = gold_BT.index_put((first_P, torch.zeros_like(first_P)), gold_P)
        if response is not None:
            teachers_KPL = batch["teacher_label_scores"][rows_PL].permute(2, 0, 1)
            divergence = label_divergence(scores_PL, teachers_KPL, weights_BK[first_P], response.objective)
            response_loss = response_loss + (response.weight_B[first_P] * divergence.target_P).sum()
            target_BT[first_P, 0] = divergence.target_P.detach()
            teacher_BKT[first_P, :, 0] = divergence.teachers_PK
    return LabelTerms(response_loss, target_BT, teacher_BKT, gold_BT, scores_B.detach())


def label_counts(batch: RolloutBatch, scores_B: Tensor, num_skills: int) -> tuple[AttemptCounts, GateCounts]:
    """Return how often the student and its teachers predict the gold label, of a micro-batch's rows that have one.

    A prediction of the student is an attempt, which succeeds if it is the gold label. With a gate a row counts when it
    is met for the first time (prequential evaluation, Dawid 1984): on a label that it was taught the student catches up
    with any teacher, which tells nothing of the rows without one.

    Args:
        batch: The micro-batch.
        scores_B: The student's score of each label.
        num_skills: S.
    """
    was_run_BK = batch["teacher_tokens"].any(-1)
    attempts = AttemptCounts.zeros(num_skills, 0, scores_B.device)
    gate = GateCounts.zeros(num_skills, was_run_BK.shape[1], scores_B.device)
    gold_B, skills_B = batch["gold_ids"], batch["skill_ids"]
    is_counted_B = (batch["label_ids"] == 0) & (gold_B >= 0) & batch.get("is_first_visit", gold_B >= 0)
    succeeded_B = is_counted_B & (predicted_labels(scores_B[:, None], batch)[:, 0] == gold_B)
    has_prediction_BK = is_counted_B[:, None] & was_run_BK
    correct_BK = has_prediction_BK & (predicted_labels(batch["teacher_label_scores"], batch) == gold_B[:, None])
    attempts.attempts_S.index_add_(0, skills_B, is_counted_B.double())
    attempts.successes_S.index_add_(0, skills_B, succeeded_B.double())
    gate.prompts_SK.index_add_(0, skills_B, has_prediction_BK.double())
    gate.correct_SK.index_add_(0, skills_B, correct_BK.double())
    gate.attempts_SK.index_add_(0, skills_B, correct_BK.double())
    gate.successes_SK.index_add_(0, skills_B, (correct_BK & succeeded_B[:, None]).double())
    return attempts, gate
