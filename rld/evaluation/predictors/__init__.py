"""How a model's predictions for held-out rows are made: one class per `predicts` of a kind of rows."""

from __future__ import annotations

from rld.evaluation.predictors.base import Predictor
from rld.evaluation.predictors.label import LabelPredictor
from rld.evaluation.predictors.likelihood import LikelihoodPredictor
from rld.evaluation.predictors.text import TextPredictor
from rld.types import Predicts

PREDICTORS: dict[Predicts, type[Predictor]] = {
    "text": TextPredictor,
    "label": LabelPredictor,
    "likelihood": LikelihoodPredictor,
}
"""The predictors by what the rows ask for."""
