"""Predictions that are labels: the likeliest of a skill's labels, and the probability of each."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from rld.evaluation.predictions import Prediction
from rld.evaluation.predictors.base import Model, PredictionSettings
from rld.models.completion_scores import completion_scores
from rld.models.logprob_source import answer_of
from rld.models.prompting import PromptEncoder
from rld.recipe.skills import Skill
from rld.rollout.label_completions import label_tokens
from rld.types import Row


class LabelPredictor:
    """Predicts the label whose words the model finds likeliest; `p(l | x)` is the softmax of their log-probabilities.

    The words are spelt in the model's own tokens. A prediction of the gold label has reward 1, and any other one 0.
    """

    def __init__(self, settings: PredictionSettings, skills: Mapping[str, Skill]) -> None:
        self.settings = settings
        self._words = {name: [*getattr(skill, "labels", {}).values()] for name, skill in skills.items()}

    def predict(self, model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Prediction]:
        """Return the predictions for rows; each process makes those of a share of them."""
        state = PartialState()
        numbers = range(len(rows))[state.process_index :: state.num_processes]
        predict = functools.partial(self._predict, model, tokenizer, [rows[i] for i in numbers])
        mine = answer_of(model, predict)
        gathered: list[tuple[int, Prediction]] = gather_object(list(zip(numbers, mine, strict=True)))
        return [prediction for _, prediction in sorted(gathered, key=lambda pair: pair[0])]

    def _predict(self, model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Prediction]:
        encoder, placed_model = self.settings.encoder(model, tokenizer), self.settings.place(model)
        bare: Any = placed_model.get_base_model() if isinstance(placed_model, PeftModel) else placed_model
        prompts = encoder.encode_all([row["prompt"] for row in rows])
        labels = [self._tokens(encoder, row) for row in rows]
        pairs = [(prompt, ids) for prompt, label_ids in zip(prompts, labels, strict=True) for ids in label_ids]
        scores = torch.tensor(completion_scores(bare, pairs), dtype=torch.float64).split([*map(len, labels)])
        return [
            self._prediction(row, scores_L.softmax(-1).tolist(), len(prompt) + sum(map(len, label_ids)))
            for row, scores_L, prompt, label_ids in zip(rows, scores, prompts, labels, strict=True)
        ]

    def _tokens(self, encoder: PromptEncoder, row: Row) -> list[list[int]]:
        words = self._words[row["skill"]]
        return [label_tokens(encoder, row["prompt"], text, words) for text in words]

    def _prediction(self, row: Row, probabilities: Sequence[float], num_tokens: int) -> Prediction:
        by_words = dict(zip(self._words[row["skill"]], probabilities, strict=True))
        answer = max(by_words, key=lambda words: by_words[words])
        reward = float(answer == row["answer"])
        return Prediction(answer, reward, scored=answer, probabilities=by_words, num_tokens=num_tokens)
