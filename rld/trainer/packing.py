"""Rows of a fixed length that hold several documents, for supervised fine-tuning.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import pack_dataset

from rld.utils.messages import tell

NO_LABEL = -100
"""The label of a token that is not learnt."""


def packed(dataset: Dataset, block: int, stage: str) -> Dataset:
    """Return rows of at most `block` tokens that hold the rows of a data set one after another, and say how full.

    Args:
        dataset: Rows with `input_ids` and `labels`. A row that is longer is cut, and no token is lost.
        block: Tokens of a row.
        stage: The stage's name, for the message.

    Returns:
        Rows with `input_ids`, `labels`, and `seq_lengths`, the tokens of each row of `dataset` in it.
    """
    rows = pack_dataset(dataset, block, "bfd_split")
    num_tokens = sum(map(sum, rows["seq_lengths"]))
    padding = 1 - num_tokens / (len(rows) * block)
    sizes = f"{len(dataset):,} pieces of text in {len(rows):,} rows of {block} tokens"
    tell(f"stage '{stage}': {sizes}, {padding:.1%} of them padding")
    return rows


@dataclass(frozen=True)
class PackedCollator:
    """Makes batches of packed rows, without an attention mask: positions tell where a document begins.

    Attributes:
        pad_token_id: The token behind a row's last document. Each is a document by itself, and not learnt.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `labels` and `position_ids`, `[B, L]`; a document's first token has no label."""
        positions = [torch.cat([torch.arange(length) for length in row["seq_lengths"]]) for row in rows]
        position_BL = pad_sequence(positions, batch_first=True)
        label_BL = pad_sequence([torch.tensor(row["labels"]) for row in rows], True, NO_LABEL)
        return {
            "input_ids": pad_sequence([torch.tensor(row["input_ids"]) for row in rows], True, self.pad_token_id),
            "labels": label_BL.masked_fill(position_BL == 0, NO_LABEL),
            "position_ids": position_BL,
        }
