"""Predictions of labels: the softmax of the log-probabilities of their words, for models and for sources."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tests.support.tiny as tiny
from rld.evaluation.predictors.base import PredictionSettings
from rld.evaluation.predictors.label import LabelPredictor
from rld.models.prompting import PromptEncoder
from rld.recipe.skills import FileSkill
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from tests.support.fleet import FLEET
from tests.support.label_reference import label_scores


def predictor(*words: str) -> LabelPredictor:
    skill = FileSkill(file="x.csv", kind="labelled", labels=list(words))
    settings = PredictionSettings(lambda **_: [], 8, torch.device("cpu"))
    return LabelPredictor(settings, {"all": skill})


def rows(*prompts: str, answer: str = "") -> list[dict[str, Any]]:
    return [{"prompt": prompt, "answer": answer, "skill": "all"} for prompt in prompts]


@pytest.mark.parametrize("words", [(" Yes", " No", " the answer"), (" Answer", " Answer with No")])
@pytest.mark.parametrize("name", ["byte_level", "sentencepiece_bpe", "bos"])
def test_probabilities_are_the_softmax_of_the_words_log_probabilities(name, words):
    model, tokenizer = FLEET[name].model(seed=3), FLEET[name].tokenizer()
    asked = rows("Question: Is it? Answer:", "Answer: ", "Question: What else is there to ask? Answer:")
    predictions = predictor(*words).predict(model, tokenizer, asked)
    for row, prediction in zip(asked, predictions, strict=True):
        encoder = PromptEncoder(tokenizer)
        scores_L = label_scores(model, encoder, row["prompt"], list(words), with_end=len(words) == 2)
        assert prediction.probabilities is not None
        assert list(prediction.probabilities) == list(words)
        torch.testing.assert_close(
            torch.tensor(list(prediction.probabilities.values())), scores_L.softmax(-1).float(), rtol=1e-4, atol=1e-6
        )
        assert prediction.answer == words[int(scores_L.argmax())]
        assert prediction.reward == 0  # no label is known
        assert prediction.num_tokens > len(tokenizer(row["prompt"])["input_ids"])


def test_the_gold_label_has_reward_1_and_a_source_predicts_as_its_model_does():
    words = ("a", "bc", "j")
    teacher = Teacher(tiny.model(seed=1), name="one", tokenizer=tiny.tokenizer())
    source = LocalLogprobs(teacher, torch.device("cpu"), top_k=4)
    source.connect(tiny.tokenizer())
    asked = rows("ab=", "cd=", "ef=", answer="bc")
    of_model, of_source = (predictor(*words).predict(m, tiny.tokenizer(), asked) for m in (tiny.model(seed=1), source))
    for one, other in zip(of_model, of_source, strict=True):
        assert one.reward == float(one.answer == "bc")
        assert one.answer == other.answer
        assert one.probabilities is not None and other.probabilities is not None
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), rel=1e-4)


def test_a_model_that_is_trained_stays_in_training():
    model = tiny.model().train()
    predictor("a", "b").predict(model, tiny.tokenizer(), rows("ab="))
    assert model.training
