"""Scores: which a skill may have, what they are computed from, and their intervals."""

from __future__ import annotations

import math

import pytest

from rld.evaluation.held_out import HeldOutEvaluator, correct_counts
from rld.evaluation.predictions import Prediction
from rld.evaluation.scores import DEFAULT_SCORES, SCORES, require_scores
from rld.recipe.skills import FileSkill
from tests.support import scoring

ROWS = [{"prompt": str(i), "answer": str(i % 2), "skill": "odd", "level": 0, "entry": ""} for i in range(40)]


class Texts(FileSkill):
    """A skill whose rows are texts that are only read."""

    @property
    def predicts(self):
        return "likelihood"


def test_the_first_score_is_that_of_the_skill_and_each_has_an_interval():
    evaluator = scoring.evaluator(ROWS, None, 1, scores=["exact_match", "solved"])
    said = [Prediction(" 1 ", float(i < 10), " 1 ") for i in range(40)]
    evaluation = evaluator.evaluation(said)
    assert evaluation.scores == {"odd": 0.5}
    measured = evaluation.measured["odd"]
    assert list(measured) == ["exact_match", "solved"]
    assert measured["solved"].value == 0.25
    error = math.sqrt(0.25 * 0.75 / 40)
    assert measured["solved"].low == pytest.approx(0.25 - 1.96 * error, abs=0.03)
    assert measured["solved"].high == pytest.approx(0.25 + 1.96 * error, abs=0.03)
    assert evaluator.evaluation(said) == evaluation, "the draws are the same each time"
    assert correct_counts(ROWS, said) == {"odd": (10, 40)}


def test_likelihoods_are_means_over_bytes_and_tokens_not_over_texts():
    evaluator = HeldOutEvaluator(ROWS[:2], {"odd": Texts(file="x.txt")}, None)
    said = [Prediction(nats=3.0, num_bytes=9, num_tokens=3), Prediction(nats=2.0, num_bytes=1, num_tokens=1)]
    measured = {name: score.value for name, score in evaluator.evaluation(said).measured["odd"].items()}
    wanted = {"byte_probability": math.exp(-0.5), "nats_per_byte": 0.5, "perplexity": math.exp(5 / 4)}
    assert measured == pytest.approx(wanted)
    assert correct_counts(ROWS[:2], said) == {}, "there is no correct answer"
    assert evaluator.sample_indices == []


def test_a_prediction_is_read_back_from_its_line():
    said = Prediction(answer="a", reward=1.0, scored="a", probabilities={"a": 0.75, "b": 0.25}, num_tokens=3)
    line = said.as_record(ROWS[0])
    assert line["gold"] == "0" and "nats" not in line
    assert Prediction.from_record(line) == said


@pytest.mark.parametrize(
    ("names", "predicts", "text"),
    [
        (["solvd"], "text", "no score 'solvd'; did you mean 'solved'?"),
        (["accuracy"], "text", "the score accuracy is of a label, and these rows ask for a text"),
        (["solved", "solved"], "text", "named twice"),
        (["perplexity"], "likelihood", "put one of these first: byte_probability"),
    ],
)
def test_scores_that_a_skill_cannot_have_are_refused_by_name(names, predicts, text):
    with pytest.raises(ValueError, match="score") as error:
        require_scores(names, predicts)
    assert text in str(error.value)


def test_every_default_is_possible_and_every_score_is_of_something_predicted():
    for predicts, names in DEFAULT_SCORES.items():
        require_scores(names, predicts)
    assert {score.predicts for score in SCORES.values()} == set(DEFAULT_SCORES)
