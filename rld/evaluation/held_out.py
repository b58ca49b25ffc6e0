"""Scores of a model on held-out rows, per skill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rld.evaluation.intervals import interval
from rld.evaluation.metric import load_metric
from rld.evaluation.predictions import Prediction
from rld.evaluation.predictors import PREDICTORS
from rld.evaluation.predictors.base import Model, PredictionSettings
from rld.evaluation.scores import SCORES
from rld.recipe.skills import Skill
from rld.rollout.verifier import is_success
from rld.types import Predicts, Row

NUM_SAMPLES = 3
"""Number of held-out rows per skill whose answers are recorded as samples for the user."""


class MeasuredScore(NamedTuple):
    """A score, and the ends of its 95% interval over rows."""

    value: float
    low: float
    high: float


class Evaluation(NamedTuple):
    """The result of a model on held-out rows.

    Attributes:
        measured: The scores of each skill by name, its main score first.
        predictions: What the model says of each held-out row, in their order.
    """

    measured: dict[str, dict[str, MeasuredScore]]
    predictions: list[Prediction]

    @property
    def scores(self) -> dict[str, float]:
        """The main score of each skill, from 0 to 1."""
        return {skill: next(iter(scores.values())).value for skill, scores in self.measured.items()}


@dataclass(frozen=True)
class HeldOutEvaluator:
    """Scores models on held-out rows.

    Attributes:
        rows: The held-out rows of all skills.
        skills: The options of the skills.
        settings: What predictions depend on.
    """

    rows: Sequence[Row]
    skills: Mapping[str, Skill]
    settings: PredictionSettings

    def score(self, model: Model, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Return the main score of each skill."""
        predictions = self.predict(model, tokenizer, self.rows)
        by_skill = _by_skill(self.rows, predictions)
        return {
            skill: _score(self.skills[skill].scores_in_use[0], *rows_and_predictions)
            for skill, rows_and_predictions in by_skill.items()
        }

    def evaluate(self, model: Model, tokenizer: PreTrainedTokenizerBase) -> Evaluation:
        """Return the scores on the held-out rows with their intervals, and the predictions."""
        return self.evaluation(self.predict(model, tokenizer, self.rows))

    def evaluation(self, predictions: Sequence[Prediction]) -> Evaluation:
        """Return the evaluation of predictions for the held-out rows, in their order."""
        measured = {
            skill: {name: _measured(name, *pair) for name in self.skills[skill].scores_in_use}
            for skill, pair in _by_skill(self.rows, predictions).items()
        }
        return Evaluation(measured, list(predictions))

    def predict(self, model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Prediction]:
        """Return a model's predictions for rows of the skills, held out or not, in their order."""
        indices: dict[Predicts, list[int]] = {}
        for i, row in enumerate(rows):
            indices.setdefault(self.skills[row["skill"]].predicts, []).append(i)
        predictions: dict[int, Prediction] = {}
        for predicts, numbers in indices.items():
            predictor = PREDICTORS[predicts](self.settings, self.skills)
            part = predictor.predict(model, tokenizer, [rows[i] for i in numbers])
            predictions |= dict(zip(numbers, part, strict=True))
        return [predictions[i] for i in range(len(rows))]

    @property
    def sample_indices(self) -> list[int]:
        """The indices of the first `NUM_SAMPLES` held-out rows of each skill whose rows ask for an answer."""
        indices: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            if self.skills[row["skill"]].predicts != "likelihood":
                indices.setdefault(row["skill"], []).append(i)
        return [i for numbers in indices.values() for i in numbers[:NUM_SAMPLES]]


def correct_counts(rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, tuple[int, int]]:
    """Return for each skill whose rows ask for an answer the number of correct ones, and of all."""
    counts: dict[str, tuple[int, int]] = {}
    for row, prediction in zip(rows, predictions, strict=True):
        if prediction.reward is not None:
            num_correct, num_rows = counts.get(row["skill"], (0, 0))
            counts[row["skill"]] = num_correct + is_success(prediction.reward), num_rows + 1
    return counts


def _by_skill(rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, tuple[list[Row], list[Prediction]]]:
    by_skill: dict[str, tuple[list[Row], list[Prediction]]] = {}
    for row, prediction in zip(rows, predictions, strict=True):
        skill_rows, skill_predictions = by_skill.setdefault(row["skill"], ([], []))
        skill_rows.append(row)
        skill_predictions.append(prediction)
    return by_skill


def _columns(name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, list[object]]:
    values = [SCORES[name].columns(row, prediction) for row, prediction in zip(rows, predictions, strict=True)]
    return {column: [value[column] for value in values] for column in values[0]}


def _score(name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> float:
    """Return the score `name` of predictions for the rows of one skill."""
    score = SCORES[name]
    (value,) = load_metric(score.metric).compute(**_columns(name, rows, predictions), **score.options).values()
    return float(value)


def _measured(name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> MeasuredScore:
    """Return the score `name` of predictions for the rows of one skill, with its interval."""
    score, columns = SCORES[name], _columns(name, rows, predictions)
    value = _score(name, rows, predictions)
    return MeasuredScore(value, *interval(load_metric(score.metric), columns, score.options))
