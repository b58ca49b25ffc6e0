"""Evaluators of held-out rows without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rld.evaluation.held_out import HeldOutEvaluator
from rld.evaluation.predictions import Prediction
from rld.evaluation.predictors.base import PredictionSettings
from rld.evaluation.predictors.text import TextPredictor
from rld.recipe.skills import GeneratedSkill
from rld.types import Row


def settings(judge: Any, max_new_tokens: int, *others: Any) -> PredictionSettings:
    """Return settings for models on the CPU; `others` are those of the chat template and of thinking parts."""
    return PredictionSettings(judge, max_new_tokens, torch.device("cpu"), *others)


def evaluator(rows: Sequence[Row], judge: Any, max_new_tokens: int, *others: Any, **skill: Any) -> HeldOutEvaluator:
    """Return the evaluator of rows; `skill` are options that all skills have."""
    skills = {row["skill"]: GeneratedSkill(generator="some:function", **skill) for row in rows}
    return HeldOutEvaluator(rows, skills, settings(judge, max_new_tokens, *others))


def shares(rows: Sequence[Row], texts: Sequence[str], judge: Any, tokenizer: Any) -> dict[str, float]:
    """Return the share of answers that the judge calls correct, per skill."""
    judged = evaluator(rows, judge, 1)
    rewards = TextPredictor(judged.settings, judged.skills).rewards(rows, texts, tokenizer)
    return judged.evaluation([Prediction(text, reward) for text, reward in zip(texts, rewards, strict=True)]).scores
