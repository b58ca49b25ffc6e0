"""Predictions of texts that are only read: the nats that a model needs for them.

Shapes: B pieces, T tokens of a piece, S = T + 1 with the token in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.evaluation.predictions import Prediction
from rld.evaluation.predictors.base import Model, PredictionSettings
from rld.models.backbone import hidden_states
from rld.models.heads import LMHead, log_probabilities
from rld.models.logprob_source import LogprobSource, ScoredSequence
from rld.models.prompt_sharing import PromptSharingLayout
from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length, evaluating
from rld.models.text_pieces import cut_text
from rld.recipe.skills import DatasetSkill, FileSkill, Skill
from rld.types import Row
from rld.utils.tensors import pad_prompts_and_completions

_MAX_TOKENS = 8192
"""Tokens of a forward, padding included: hidden states of a few hundred megabytes at most."""


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
        nats, num_tokens = [0.0] * len(rows), [0] * len(rows)
        for batch in _batches(pieces):
            for piece, value in zip(batch, _nats(model, encoder, batch), strict=True):
                nats[piece.row] += value
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


def _batches(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Yield pieces of similar length together, the longest first."""
    batch: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > _MAX_TOKENS:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _nats(model: Model, encoder: PromptEncoder, pieces: Sequence[_Piece]) -> list[float]:
    """Return the negative log-probability of each piece."""
    if isinstance(model, LogprobSource):
        sequences = [ScoredSequence([*encoder.start, *piece.ids], len(piece.ids)) for piece in pieces]
        return [-float(scores.sampled.double().sum()) for scores in model.score(sequences, 1.0)]
    return _read(model, encoder, pieces)


@torch.no_grad()
def _read(model: PreTrainedModel, encoder: PromptEncoder, pieces: Sequence[_Piece]) -> list[float]:
    ids_BS, attention_BS, mask_BT = pad_prompts_and_completions([(encoder.start, piece.ids) for piece in pieces])
    num_tokens = mask_BT.shape[1]
    with evaluating(model):
        states = hidden_states(
            model,
            ids_BS.to(model.device),
            attention_BS.to(model.device),
            num_tokens=num_tokens,
            rows_per_forward=len(pieces),
            layout=PromptSharingLayout.unshared(model),
        )
        head = LMHead.of(model)
        device, target_BT = head.weight.device, ids_BS[:, -num_tokens:]
        log_p_BT = log_probabilities(head, states.last_BTH.to(device), target_BT.to(device), temperature=1.0)
    nats_BT = -log_p_BT.cpu().double().masked_fill(mask_BT == 0, 0.0)
    return [float(value) for value in nats_BT.sum(1)]
