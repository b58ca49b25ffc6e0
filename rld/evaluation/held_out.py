"""Scores of a model on held-out rows, per skill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rld.evaluation.confusion import ConfusionTable
from rld.evaluation.intervals import interval
from rld.evaluation.measured import MeasuredScore, MeasuredScores
from rld.evaluation.metric import load_metric
from rld.evaluation.predictions import Prediction
from rld.evaluation.predictors import PREDICTORS
from rld.evaluation.predictors.base import Model, PredictionSettings
from rld.evaluation.sampling import sample_rewards
from rld.evaluation.scores import SCORES, Score, find_score
from rld.recipe.skills import Skill
from rld.rollout.verifier import is_success
from rld.types import Predicts, Row

NUM_SAMPLES = 3
"""Number of held-out rows per skill whose answers are recorded as samples for the user."""


class Evaluation(NamedTuple):
    """The result of a model on held-out rows.

    Attributes:
        scores: The main score of each skill, and of each task of other evaluators, from 0 to 1.
        measured: All scores of each skill and task by name, its main score first.
        predictions: What the model says of each held-out row, in their order.
    """

    scores: dict[str, float]
    measured: MeasuredScores
    predictions: list[Prediction]

    def with_tasks(self, measured: MeasuredScores) -> Evaluation:
        """Return the evaluation with the scores of tasks, too."""
        return self._replace(scores=self.scores | main_scores(measured), measured={**self.measured, **measured})


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

    def main_scores(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Return the main score of each skill from predictions for the held-out rows."""
        main = {name: _definition(skill.scores_in_use[0]) for name, skill in self.skills.items()}
        return {skill: _value(main[skill], *pair) for skill, pair in _by_skill(self.rows, predictions).items()}

    def evaluate(self, model: Model, tokenizer: PreTrainedTokenizerBase) -> Evaluation:
        """Return the scores on the held-out rows with their intervals, and the predictions."""
        return self.evaluation(self.predictions(model, tokenizer))

    def evaluation(self, predictions: Sequence[Prediction]) -> Evaluation:
        """Return the evaluation of predictions for the held-out rows, in their order.

        Scores of samples are left out where the model has drawn none.
        """
        scores, measured = dict[str, float](), dict[str, dict[str, MeasuredScore]]()
        for skill, (rows, skill_predictions) in _by_skill(self.rows, predictions).items():
            names = self.skills[skill].scores_in_use
            possible = [
                name for name in names if skill_predictions[0].sample_rewards is not None or not _needs_samples(name)
            ]
            measured[skill] = {name: _measured(_definition(name), rows, skill_predictions) for name in possible}
            if names[0] in possible:
                scores[skill] = measured[skill][names[0]].value
        return Evaluation(scores, measured, list(predictions))

    def agreement(self, evaluation: Evaluation, other: Evaluation) -> dict[str, MeasuredScore]:
        """Return for each skill whose rows ask for an answer the share of rows to which two models give the same."""
        rows = [
            {**row, "answer": prediction.scored} for row, prediction in zip(self.rows, other.predictions, strict=True)
        ]
        return {
            skill: _measured(SCORES["exact_match"], *pair)
            for skill, pair in _by_skill(rows, evaluation.predictions).items()
            if self.skills[skill].predicts != "likelihood"
        }

    def confusion(self, evaluation: Evaluation) -> dict[str, ConfusionTable]:
        """Return for each skill of labels how often each gold label was taken for each label."""
        return {
            skill: ConfusionTable.of(*pair)
            for skill, pair in _by_skill(self.rows, evaluation.predictions).items()
            if self.skills[skill].predicts == "label"
        }

    def predictions(
        self, model: Model, tokenizer: PreTrainedTokenizerBase, *, only_main: bool = False
    ) -> list[Prediction]:
        """Return a model's predictions for the held-out rows, with samples where scores, or main scores, need them."""
        predictions = self.predict(model, tokenizer, self.rows)
        for skill, options in self.skills.items():
            names = options.scores_in_use[:1] if only_main else options.scores_in_use
            indices = [i for i, row in enumerate(self.rows) if row["skill"] == skill]
            if indices and options.samples is not None and any(map(_needs_samples, names)):
                rows = [self.rows[i] for i in indices]
                rewards = sample_rewards(model, tokenizer, rows, self.settings, options.samples)
                for i, row_rewards in zip(indices, rewards or [], strict=rewards is not None):
                    predictions[i] = predictions[i]._replace(sample_rewards=row_rewards)
        return predictions

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


def main_scores(measured: MeasuredScores) -> dict[str, float]:
    """Return the main score of each skill or task."""
    return {name: next(iter(scores.values())).value for name, scores in measured.items()}


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


def _needs_samples(name: str) -> bool:
    return _definition(name).num_samples > 0


def _definition(name: str) -> Score:
    score = find_score(name)
    assert score is not None  # the recipe was validated
    return score


def _columns(score: Score, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, list[object]]:
    values = [score.columns(row, prediction) for row, prediction in zip(rows, predictions, strict=True)]
    return {column: [value[column] for value in values] for column in values[0]}


def _value(score: Score, rows: Sequence[Row], predictions: Sequence[Prediction]) -> float:
    """Return a score of predictions for the rows of one skill."""
    (value,) = load_metric(score.metric).compute(**_columns(score, rows, predictions), **score.options).values()
    return float(value)


def _measured(score: Score, rows: Sequence[Row], predictions: Sequence[Prediction]) -> MeasuredScore:
    """Return a score of predictions for the rows of one skill, with its interval."""
    ends = interval(load_metric(score.metric), _columns(score, rows, predictions), score.options)
    return MeasuredScore(_value(score, rows, predictions), *ends)
