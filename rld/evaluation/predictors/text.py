"""Predictions that are texts: greedy answers, and what the judge gives to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from rld.evaluation.predictions import Prediction
from rld.evaluation.predictors.base import Model, PredictionSettings
from rld.models.generation import generate
from rld.models.prompting import PromptEncoder
from rld.recipe.skills import Skill
from rld.rollout.verifier import answers_of, shared_rewards
from rld.types import Answer, Row


class TextPredictor:
    """Predicts by greedy answers."""

    def __init__(self, settings: PredictionSettings, skills: Mapping[str, Skill]) -> None:
        self.settings = settings

    def predict(self, model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Prediction]:
        """Return a model's greedy answers to rows, with the judge's rewards."""
        encoder = self.settings.encoder(model, tokenizer)
        texts = [answer.text for answer in self.answer(model, tokenizer, rows)]
        scored = answers_of([row["prompt"] for row in rows], texts, encoder)
        rewards = self.rewards(rows, texts, tokenizer)
        prompts, answers = encoder.encode_all([row["prompt"] for row in rows]), encoder.encode_answers(texts)
        return [
            Prediction(text, reward, answer, num_tokens=len(prompt_ids) + len(ids))
            for text, reward, answer, prompt_ids, ids in zip(texts, rewards, scored, prompts, answers, strict=True)
        ]

    def answer(self, model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Answer]:
        """Return a model's greedy answers to rows."""
        model = self.settings.place(model)
        encoder = self.settings.encoder(model, tokenizer)
        return generate(model, encoder, rows, max_new_tokens=self.settings.max_new_tokens)

    def rewards(self, rows: Sequence[Row], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[float]:
        """Return the judge's rewards for answers, the same on every process; 0 where the judge returns None.

        Args:
            rows: The same on every process, each of which judges a share of the answers.
            texts: The answers.
            tokenizer: That of the model that gave them.
        """
        settings = self.settings
        encoder = PromptEncoder(tokenizer, settings.chat_template_kwargs, strip_thinking=settings.strip_thinking)
        rewards = shared_rewards(encoder, rows, texts, settings.judge)
        return [0.0 if reward is None else reward for reward in rewards]
