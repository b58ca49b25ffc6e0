"""Predictions of texts that are only read: the nats that a model needs for them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rld.evaluation.predictions import Prediction
from rld.evaluation.predictors.base import Model, PredictionSettings
from rld.models.completion_scores import completion_scores
from rld.models.logprob_source import LogprobSource, answer_of
from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length
from rld.models.text_pieces import cut_text
from rld.recipe.skills import DatasetSkill, FileSkill, Skill
from rld.types import Row


class _Piece(NamedTuple):
    """A part of a text that is read at once.

    Attributes:
        row: The number of the text.
        ids: Its tokens.
    """

    row: int
    ids: list[int]


class LikelihoodPredictor:
    """Reads texts, long ones in blocks as in training: a token's context begins with its block."""

    def __init__(self, settings: PredictionSettings, skills: Mapping[str, Skill]) -> None:
        self.settings, self.skills = settings, skills

    def predict(self, model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Prediction]:
        """Return the nats, bytes and tokens of each text; the end of a text is no part of it."""
        model, encoder = self.settings.place(model), self.settings.encoder(model, tokenizer)
        pieces = [piece for i, row in enumerate(rows) for piece in self._pieces(model, encoder, i, row)]
        pieces.sort(key=lambda piece: -len(piece.ids))  # those of similar length are read together
        pairs = [(encoder.start, piece.ids) for piece in pieces]
        read = functools.partial(completion_scores, model, pairs, shares_prompts=False)
        scores = answer_of(model, read)
        nats, num_tokens = [0.0] * len(rows), [0] * len(rows)
        for piece, score in zip(pieces, scores, strict=True):
            nats[piece.row] -= score
            num_tokens[piece.row] += len(piece.ids)
        return [
            Prediction(nats=nats[i], num_bytes=len(row["answer"].encode()), num_tokens=num_tokens[i])
            for i, row in enumerate(rows)
        ]

    def _pieces(self, model: Model, encoder: PromptEncoder, number: int, row: Row) -> list[_Piece]:
        skill = self.skills[row["skill"]]
        assert isinstance(skill, (FileSkill, DatasetSkill))
        context = None if isinstance(model, LogprobSource) else context_length(model.config)
        texts = cut_text(encoder, row["answer"], min(skill.block, context or skill.block))
        return [_Piece(number, ids) for _, ids in encoder.encode_rows([""] * len(texts), texts) if ids]
