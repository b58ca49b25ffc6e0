"""Evaluators besides that of held-out rows: each scores models on tasks of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.evaluation.measured import MeasuredScores
from rld.recipe.evaluation import AnyEvaluator


class Evaluator(Protocol):
    """Scores models on tasks."""

    def require_possible(self) -> None:
        """Check that models can be scored.

        Raises:
            RecipeError: they cannot; the message says why.
        """

    def evaluate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> MeasuredScores:
        """Return the scores of each task, the same on every process; the random state stays as it was.

        The first of a task is its main score: it is between 0 and 1, and better where it is larger.

        Args:
            model: On its device; its mode stays as it was.
            tokenizer: Its tokenizer.
        """
        ...


def build_evaluator(options: AnyEvaluator, source: Path, *, is_chat: bool) -> Evaluator:
    """Return the evaluator that options describe, from the module of their kind.

    Args:
        options: The options.
        source: The recipe's file; paths are relative to its folder.
        is_chat: Whether prompts are formatted with the model's chat template.
    """
    module: Any = importlib.import_module(f"rld.evaluation.{options.kind}")
    evaluator: Evaluator = module.build(options, source, is_chat=is_chat)
    return evaluator
