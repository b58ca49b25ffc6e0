"""Predictions that are labels: the likeliest of a skill's labels, and the probability of each."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class LabelDistribution(NamedTuple):
    """What a model says of the labels of a prompt.

    Attributes:
        probabilities: The probability of each label; they sum to 1.
        num_tokens: The tokens of the prompt and of the words of all labels.
    """

    probabilities: list[float]
    num_tokens: int


def label_distributions(
    model: Model, encoder: PromptEncoder, prompts: Sequence[Any], words: Sequence[Sequence[str]]
) -> list[LabelDistribution]:
    """Return for each prompt the softmax of the log-probabilities of the words that say its labels.

    Args:
        model: A model on its device, or a log-probability source.
        encoder: The model's; the words are spelt in its tokens.
        prompts: Texts or messages.
        words: For each prompt the words of each label.
    """
    bare: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    prompt_ids = encoder.encode_all(prompts)
    labels = [
        [label_tokens(encoder, prompt, text, words_L) for text in words_L]
        for prompt, words_L in zip(prompts, words, strict=True)
    ]
    pairs = [(ids, label) for ids, labels_L in zip(prompt_ids, labels, strict=True) for label in labels_L]
    scores = torch.tensor(completion_scores(bare, pairs), dtype=torch.float64).split([*map(len, labels)])
    return [
        LabelDistribution(scores_L.softmax(-1).tolist(), len(ids) + sum(map(len, labels_L)))
        for ids, labels_L, scores_L in zip(prompt_ids, labels, scores, strict=True)
    ]


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
        prompts, words = [row["prompt"] for row in rows], [self._words[row["skill"]] for row in rows]
        distributions = label_distributions(placed_model, encoder, prompts, words)
        return [self._prediction(row, distribution) for row, distribution in zip(rows, distributions, strict=True)]

    def _prediction(self, row: Row, distribution: LabelDistribution) -> Prediction:
        by_words = dict(zip(self._words[row["skill"]], distribution.probabilities, strict=True))
        answer = max(by_words, key=lambda words: by_words[words])
        reward = float(answer == row["answer"])
        return Prediction(answer, reward, scored=answer, probabilities=by_words, num_tokens=distribution.num_tokens)
