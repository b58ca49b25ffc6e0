"""Scores: which a skill may have, what they are computed from, and their intervals."""

from __future__ import annotations

import importlib.util
import math
import re

import pytest

from rld.evaluation.held_out import HeldOutEvaluator, correct_counts
from rld.evaluation.predictions import Prediction
from rld.evaluation.scores import DEFAULT_SCORES, SCORES, require_scores
from rld.recipe.skills import FileSkill
from tests.support import scoring, tiny
from tests.support.processes import run_modules

ROWS = [{"prompt": str(i), "answer": str(i % 2), "skill": "odd", "level": 0, "entry": ""} for i in range(40)]


class Texts(FileSkill):
    """A skill whose rows are texts that are only read."""

    @property
    def predicts(self):
        return "likelihood"


class Labels(FileSkill):
    """A skill whose rows have labels."""

    @property
    def predicts(self):
        return "label"


def test_the_first_score_is_that_of_the_skill_and_each_has_an_interval():
    evaluator = scoring.evaluator(ROWS, None, 1, scores=["exact_match", "solved"])
    predictions = [Prediction(" 1 ", float(i < 10), " 1 ") for i in range(40)]
    evaluation = evaluator.evaluation(predictions)
    assert evaluation.scores == {"odd": 0.5}
    measured = evaluation.measured["odd"]
    assert list(measured) == ["exact_match", "solved"]
    assert measured["solved"].value == 0.25
    error = math.sqrt(0.25 * 0.75 / 40)
    assert measured["solved"].low == pytest.approx(0.25 - 1.96 * error, abs=0.03)
    assert measured["solved"].high == pytest.approx(0.25 + 1.96 * error, abs=0.03)
    assert evaluator.evaluation(predictions) == evaluation, "the draws are the same each time"
    assert correct_counts(ROWS, predictions) == {"odd": (10, 40)}


def test_likelihoods_are_means_over_bytes_and_tokens_not_over_texts():
    evaluator = HeldOutEvaluator(ROWS[:2], {"odd": Texts(file="x.txt")}, None)
    predictions = [Prediction(nats=3.0, num_bytes=9, num_tokens=3), Prediction(nats=2.0, num_bytes=1, num_tokens=1)]
    measured = {name: score.value for name, score in evaluator.evaluation(predictions).measured["odd"].items()}
    wanted = {"byte_probability": math.exp(-0.5), "nats_per_byte": 0.5, "perplexity": math.exp(5 / 4)}
    assert measured == pytest.approx(wanted)
    assert correct_counts(ROWS[:2], predictions) == {}, "there is no correct answer"
    assert evaluator.sample_indices == []


def test_a_prediction_is_read_back_from_its_line():
    prediction = Prediction(answer="a", reward=1.0, scored="a", probabilities={"a": 0.75, "b": 0.25}, num_tokens=3)
    line = prediction.as_record(ROWS[0])
    assert line["gold"] == "0" and "nats" not in line
    assert Prediction.from_record(line) == prediction


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


def test_samples_are_judged_and_scored_by_how_many_are_correct():
    rows = [{**row, "skill": "copy"} for row in tiny.rows(4)]
    skill = {"scores": ["pass_at_2", "pass_at_1"], "samples": {"count": 4, "temperature": 5.0}}
    evaluator = scoring.evaluator(rows, lambda completions, **_: [float(len(c) > 3) for c in completions], 5, **skill)
    evaluation = evaluator.evaluate(tiny.model(), tiny.tokenizer())
    counts = [sum(prediction.sample_rewards) for prediction in evaluation.predictions]
    assert len(set(counts)) > 1 and all(len(prediction.sample_rewards) == 4 for prediction in evaluation.predictions)
    measured = evaluation.measured["copy"]
    assert measured["pass_at_1"].value == pytest.approx(sum(counts) / 16)
    assert evaluation.scores["copy"] == measured["pass_at_2"].value >= measured["pass_at_1"].value
    assert evaluator.evaluate(tiny.model(), tiny.tokenizer()) == evaluation, "the draws are the same each time"
    assert evaluator.main_scores(evaluation.predictions) == evaluation.scores
    without = [prediction._replace(sample_rewards=None) for prediction in evaluation.predictions]
    assert evaluator.evaluation(without).scores == {}, "a model that is elsewhere draws none"


def test_each_answer_is_judged_by_one_process_for_all(tmp_path):
    run_modules("tests.support.judged_once", [], 2, log=tmp_path / "log")


def test_two_models_agree_where_they_give_the_same_answer():
    evaluator = scoring.evaluator(ROWS, None, 1)
    one, other = ([Prediction("", 0.0, str(i % n)) for i in range(40)] for n in (2, 4))
    agreement = evaluator.agreement(evaluator.evaluation(one), evaluator.evaluation(other))
    assert agreement["odd"].value == 0.5


def test_labels_have_a_confusion_table():
    evaluator = HeldOutEvaluator(ROWS[:3], {"odd": Labels(file="x.csv")}, None)
    predictions = [Prediction(label, 1.0, label, {label: 0.5, "2": 0.5}) for label in ("0", "2", "1")]
    evaluation = evaluator.evaluation(predictions)
    assert evaluation.measured["odd"]["accuracy"].value == pytest.approx(1 / 3)
    assert evaluator.confusion(evaluation) == {"odd": (["0", "1", "2"], [[1, 1, 0], [0, 0, 1], [0, 0, 0]])}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scores": ["pass_at_5"], "samples": {"count": 4}}, "samples: {count: 5}"),
        ({"scores": ["solved"], "samples": {"count": 4}}, "the skill has none in its scores"),
        ({"scores": ["pass_at_0"]}, "there is no score 'pass_at_0'"),
    ],
)
def test_samples_and_the_scores_that_need_them_belong_together(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        FileSkill(file="x.csv", **options)


def test_a_score_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"rouge_l needs rouge-score; install it with: pip install -e '.\[text\]'"):
        require_scores(["rouge_l"], "text")
