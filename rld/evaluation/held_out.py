"""Scores of a model on held-out rows, per skill."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.models.generation import generate
from rld.models.logprob_source import LogprobSource
from rld.models.placement import move_unless_placed
from rld.models.prompting import PromptEncoder
from rld.types import Row

_METRIC = Path(__file__).parent / "metrics" / "solved.py"


class Accuracy(NamedTuple):
    """The share of correct answers, from 0 to 1, and the number of rows."""

    share: float
    num_rows: int

    @property
    def num_correct(self) -> int:
        return round(self.share * self.num_rows)


@dataclass(frozen=True)
class HeldOutEvaluator:
    """Scores models by their greedy answers to held-out rows.

    Attributes:
        rows: The held-out rows of all skills.
        max_new_tokens: Tokens that an answer may take.
        device: Where models run that are not placed yet.
    """

    rows: Sequence[Row]
    max_new_tokens: int
    device: torch.device

    def score(self, model: PreTrainedModel | LogprobSource, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Return the accuracy on the held-out rows, per skill."""
        texts = self.answer(model, tokenizer, self.rows)
        return {skill: accuracy.share for skill, accuracy in self.accuracies(self.rows, texts).items()}

    def answer(
        self, model: PreTrainedModel | LogprobSource, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
    ) -> list[str]:
        """Return a model's greedy answers to rows."""
        if not isinstance(model, LogprobSource):
            model = move_unless_placed(model, self.device)
        return generate(model, PromptEncoder(tokenizer), rows, max_new_tokens=self.max_new_tokens)

    def accuracies(self, rows: Sequence[Row], texts: Sequence[str]) -> dict[str, Accuracy]:
        """Return the accuracy of answers, per skill.

        A correct answer is the gold one, or for a reasoning-gym task one that its verifier gives full credit.
        """
        accuracies = {}
        for skill in dict.fromkeys(row["skill"] for row in rows):
            answered = [(row, text) for row, text in zip(rows, texts, strict=True) if row["skill"] == skill]
            references = [{"answer": row["answer"], "entry": row["entry"]} for row, _ in answered]
            result = _metric().compute(predictions=[text for _, text in answered], references=references)
            accuracies[skill] = Accuracy(float(result["solved"]), len(answered))
        return accuracies


@functools.cache
def _metric() -> Any:
    import evaluate  # takes seconds

    return evaluate.load(str(_METRIC), keep_in_memory=True)
