"""Metrics of the controller's runtime, under the names of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rld.controllers.observation import Observation, Weights
from rld.controllers.statistics import UpdateStatistics
from rld.types import SIGNALS


def signal_metrics(weights: Weights, skills: Sequence[str], phases: Sequence[int]) -> dict[str, float]:
    """Return the signals' weights, their mean over skills, their scales, and each skill's phase."""
    metrics: dict[str, float] = {}
    for signal in SIGNALS:
        if not any(signal in of_skill for of_skill in weights.signals.values()):
            continue
        per_skill = [weights.signals[skill].get(signal, 0.0) for skill in skills]
        metrics[f"weight/{signal}"] = sum(per_skill) / len(per_skill)
        metrics |= {f"weight/{signal}/{skill}": w for skill, w in zip(skills, per_skill, strict=True)}
        metrics[f"scale/{signal}"] = weights.scale.get(signal, 1.0)
    metrics |= {f"teacher_share/{skill}": share for skill, share in weights.teacher_share.items()}
    metrics |= {f"gold_share/{skill}": share for skill, share in weights.gold_share.items()}
    return metrics | {f"phase/{skill}": float(phase) for skill, phase in zip(skills, phases, strict=True)}


def teacher_metrics(teachers_SK: Tensor, skills: Sequence[str], teachers: Sequence[str]) -> dict[str, float]:
    """Return the teachers' weights per skill, and their means over skills."""
    metrics: dict[str, float] = {}
    for k, teacher in enumerate(teachers):
        shares = teachers_SK[:, k].tolist()
        metrics[f"teacher/{teacher}/weight"] = sum(shares) / len(shares)
        metrics |= {f"teacher/{teacher}/weight/{s}": w for s, w in zip(skills, shares, strict=True)}
    return metrics


def divergence_metrics(statistics: UpdateStatistics, teachers_SK: Tensor, teachers: Sequence[str]) -> dict[str, float]:
    """Return the mean divergence and feature distance per teacher, over the skills on which it has weight.

    At a recheck teachers without weight are measured too; those measurements are for the controller alone.
    """
    weighted_SK = (teachers_SK > 0).double()
    metrics: dict[str, float] = {}
    for name, values_SK, tokens_SK in (
        ("divergence", statistics.divergence_SK, statistics.divergence_tokens_SK),
        ("distance", statistics.distance_SK, statistics.distance_tokens_SK),
    ):
        sums_K, tokens_K = (values_SK * weighted_SK).sum(0).tolist(), (tokens_SK * weighted_SK).sum(0).tolist()
        per_teacher = zip(teachers, sums_K, tokens_K, strict=True)
        metrics |= {f"{name}/{teacher}": total / tokens for teacher, total, tokens in per_teacher if tokens}
    return metrics


def tick_metrics(observation: Observation) -> dict[str, float]:
    """Return what the controller is shown at a tick, as far as it was measured."""
    metrics = {f"grad/{signal}": norm for signal, norm in observation.gradients.items() if norm is not None}
    for skill, measured in observation.skills.items():
        if measured.attempts:
            metrics[f"progress/{skill}"] = measured.successes / measured.attempts
        if measured.transfer is not None:
            metrics[f"transfer/{skill}"] = measured.transfer
        if measured.audited:
            metrics[f"audit/{skill}"] = measured.audit_passed / measured.audited
        for name, teacher in measured.teachers.items():
            if teacher.resampled:
                metrics[f"sure/{name}/{skill}"] = teacher.resampled_correct / teacher.resampled
        if measured.gradients is not None:
            metrics |= {f"noise/{signal}/{skill}": value for signal, value in measured.gradients.noise.items()}
            metrics |= {f"aligned/{signal}/{skill}": value for signal, value in measured.gradients.gold_cosine.items()}
    return metrics
