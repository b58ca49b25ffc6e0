"""The nats of texts: against float64, in blocks, by models and by sources of log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tests.support.tiny as tiny
from rld.evaluation.predictors.base import PredictionSettings
from rld.evaluation.predictors.likelihood import LikelihoodPredictor
from rld.models.text_pieces import cut_text
from rld.recipe.skills import FileSkill
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from tests.support.fleet import FLEET

TEXTS = ["abc", "jihgfedcba" * 4, "a", "bcd" * 9]
BLOCK = 16


def predictor() -> LikelihoodPredictor:
    settings = PredictionSettings(lambda **_: [], 4, torch.device("cpu"))
    skill = FileSkill(file="a.txt", kind="plain_text", block=BLOCK)
    return LikelihoodPredictor(settings, {"it": skill})


def rows() -> list[dict[str, Any]]:
    return [{"prompt": "", "answer": text, "skill": "it", "level": 0, "is_cut": False} for text in TEXTS]


def expected() -> list[float]:
    """The nats of each text in float64, each piece in a forward of its own."""
    model, encoder, values = tiny.model().double().eval(), tiny.encoder(), []
    for text in TEXTS:
        nats = 0.0
        for piece in cut_text(encoder, text, BLOCK):
            ids = [*encoder.start, *encoder.encode_answer(piece)]
            log_p_TV = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            nats -= log_p_TV.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
        values.append(nats)
    return values


def test_the_nats_of_a_text_are_those_of_its_tokens_in_float64():
    model = tiny.model().train()
    predictions = predictor().predict(model, tiny.tokenizer(), rows())
    assert [prediction.nats for prediction in predictions] == pytest.approx(expected(), rel=1e-5)
    assert [prediction.num_bytes for prediction in predictions] == list(map(len, TEXTS))
    assert [prediction.num_tokens for prediction in predictions] == list(map(len, TEXTS))
    assert model.training


def test_bytes_are_counted_and_not_characters():
    model, tokenizer = FLEET["byte_level"].model(), FLEET["byte_level"].tokenizer()
    text = "na\u00efve \U0001f642 caf\u00e9 " * 4
    (prediction,) = predictor().predict(model, tokenizer, [{**rows()[0], "answer": text}])
    assert prediction.num_bytes == len(text.encode()) > len(text)
    assert prediction.num_tokens == len(tokenizer(text)["input_ids"])


def test_a_source_of_log_probabilities_gives_the_same():
    source = LocalLogprobs(Teacher(tiny.model(), name="t", tokenizer=tiny.tokenizer()), torch.device("cpu"), 3)
    source.connect(tiny.tokenizer())
    predictions = predictor().predict(source, tiny.tokenizer(), rows())
    assert [prediction.nats for prediction in predictions] == pytest.approx(expected(), rel=1e-4)
