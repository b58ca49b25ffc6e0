"""What all predictors share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.evaluation.predictions import Prediction
from rld.models.generation import encoder_of
from rld.models.logprob_source import LogprobSource
from rld.models.placement import move_unless_placed
from rld.models.prompting import PromptEncoder
from rld.models.thinking import StripThinking
from rld.recipe.skills import Skill
from rld.rollout.verifier import Verify
from rld.types import Row

Model = PreTrainedModel | LogprobSource


@dataclass(frozen=True)
class PredictionSettings:
    """What predictions depend on, beside the model and the rows.

    Attributes:
        judge: Returns 1 for correct answers; it has the signature of a reward.
        max_new_tokens: The largest number of tokens of an answer.
        device: The device for models that have not been placed on one.
        chat_template_kwargs: Additional arguments of chat templates.
        strip_thinking: Whether answers are judged without their thinking part; or the two markers around it.
    """

    judge: Verify
    max_new_tokens: int
    device: torch.device
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    strip_thinking: StripThinking = False

    def place(self, model: Model) -> Model:
        """Return a model on its device."""
        return model if isinstance(model, LogprobSource) else move_unless_placed(model, self.device)

    def encoder(self, model: Model, tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
        """Return the encoder of prompts and answers for a model."""
        return encoder_of(model, tokenizer, self.chat_template_kwargs, self.strip_thinking)


class Predictor(Protocol):
    """Makes predictions for the rows of all skills whose rows ask for the same."""

    def __init__(self, settings: PredictionSettings, skills: Mapping[str, Skill]) -> None:
        """Keep what predictions depend on; `skills` are the options of the skills of the rows."""

    def predict(self, model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Prediction]:
        """Return the model's predictions for rows, which are the same on every process; so are the predictions."""
        ...
