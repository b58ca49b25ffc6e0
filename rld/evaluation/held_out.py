"""Scores of a model on held-out rows, per skill."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.models.generation import encoder_of, generate
from rld.models.logprob_source import LogprobSource
from rld.models.placement import move_unless_placed
from rld.models.prompting import PromptEncoder
from rld.models.thinking import StripThinking
from rld.rollout.verifier import Verify, is_success, verify_answers
from rld.types import Answer, Row

NUM_SAMPLES = 3
"""Number of held-out rows per skill whose answers are recorded as samples for the user."""

_METRIC = Path(__file__).parent / "metrics" / "solved.py"


class Accuracy(NamedTuple):
    """The share of correct answers, from 0 to 1, and the number of rows."""

    share: float
    num_rows: int

    @property
    def num_correct(self) -> int:
        return round(self.share * self.num_rows)


class SampledAnswer(NamedTuple):
    """The answer to a row, and whether it is correct."""

    answer: str
    is_correct: bool


class Evaluation(NamedTuple):
    """The result of a model on held-out rows.

    Attributes:
        scores: The share of correct answers per skill, from 0 to 1.
        samples: The answers to `HeldOutEvaluator.sample_rows`, in their order; empty if only scores are available.
    """

    scores: dict[str, float]
    samples: list[SampledAnswer]


@dataclass(frozen=True)
class HeldOutEvaluator:
    """Computes the accuracy of models from their greedy answers to held-out rows.

    Attributes:
        rows: The held-out rows of all skills.
        judge: Returns 1 for correct answers; it has the signature of a reward.
        max_new_tokens: The largest number of tokens of an answer.
        device: The device for models that have not been placed on one.
        chat_template_kwargs: Additional arguments of chat templates.
        strip_thinking: Whether answers are judged without their thinking part; or the two markers around it.
    """

    rows: Sequence[Row]
    judge: Verify
    max_new_tokens: int
    device: torch.device
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    strip_thinking: StripThinking = False

    def score(self, model: PreTrainedModel | LogprobSource, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Return the accuracy on the held-out rows, per skill."""
        return self.evaluate(model, tokenizer).scores

    def evaluate(self, model: PreTrainedModel | LogprobSource, tokenizer: PreTrainedTokenizerBase) -> Evaluation:
        """Return the scores on the held-out rows, and the answers to `sample_rows`."""
        return self.predict(model, tokenizer)[0]

    def predict(
        self, model: PreTrainedModel | LogprobSource, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Evaluation, list[SampledAnswer]]:
        """Return the evaluation, and the answers to all held-out rows in their order."""
        texts = [answer.text for answer in self.answer(model, tokenizer, self.rows)]
        rewards = self.rewards(self.rows, texts, tokenizer)
        answers = [SampledAnswer(text, is_success(reward)) for text, reward in zip(texts, rewards, strict=True)]
        scores = {skill: accuracy.share for skill, accuracy in _accuracies(self.rows, rewards).items()}
        return Evaluation(scores, [answers[i] for i in self._sample_indices()]), answers

    @property
    def sample_rows(self) -> list[Row]:
        """The first `NUM_SAMPLES` held-out rows of each skill."""
        return [self.rows[i] for i in self._sample_indices()]

    def _sample_indices(self) -> list[int]:
        indices: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            indices.setdefault(row["skill"], []).append(i)
        return [i for rows in indices.values() for i in rows[:NUM_SAMPLES]]

    def answer(
        self, model: PreTrainedModel | LogprobSource, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> list[Answer]:
        """Return a model's greedy answers to rows."""
        if not isinstance(model, LogprobSource):
            model = move_unless_placed(model, self.device)
        encoder = encoder_of(model, tokenizer, self.chat_template_kwargs, self.strip_thinking)
        return generate(model, encoder, rows, max_new_tokens=self.max_new_tokens)

    def rewards(self, rows: Sequence[Row], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[float]:
        """Return the judge's rewards for answers; 0 where the judge returns None."""
        if not rows:
            return []
        encoder = PromptEncoder(tokenizer, self.chat_template_kwargs, strip_thinking=self.strip_thinking)
        rewards = verify_answers(encoder, rows, texts, self.judge).rewards
        return [0.0 if reward is None else reward for reward in rewards]

    def accuracies(
        self, rows: Sequence[Row], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Accuracy]:
        """Return the accuracy of answers, per skill."""
        return _accuracies(rows, self.rewards(rows, texts, tokenizer))


def _accuracies(rows: Sequence[Row], rewards: Sequence[float]) -> dict[str, Accuracy]:
    accuracies = {}
    for skill in dict.fromkeys(row["skill"] for row in rows):
        skill_rewards = [reward for row, reward in zip(rows, rewards, strict=True) if row["skill"] == skill]
        accuracies[skill] = Accuracy(float(_metric().compute(predictions=skill_rewards)["solved"]), len(skill_rewards))
    return accuracies


@functools.cache
def _metric() -> Any:
    import evaluate  # deferred: the import takes seconds

    return evaluate.load(str(_METRIC), keep_in_memory=True)
