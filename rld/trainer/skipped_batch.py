"""Stores the batch of an update that could not be made, so that its user can look at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rld.utils.files import Record, write_jsonl

_TEXTS = ("prompt_ids", "completion_ids", "input_ids")
"""The tensors of tokens that are stored as text too."""


def save_batch(path: Path, micro_batches: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write `path`.jsonl, one line per row with its texts, and `path`.safetensors, with all tensors.

    A tensor's name is the number of its micro-batch, a slash and the name that the trainer has for it.

    Args:
        path: Without an ending.
        micro_batches: What this process computed the update's loss from.
        tokenizer: Of the tokens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [record for i, batch in enumerate(micro_batches) for record in _records(i, batch, tokenizer)]
    write_jsonl(path.with_name(f"{path.name}.jsonl"), records)
    tensors = {
        f"{i}/{name}": value.detach().cpu().clone().contiguous()
        for i, batch in enumerate(micro_batches)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
    save_file(tensors, path.with_name(f"{path.name}.safetensors"))


def _records(number: int, batch: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Iterator[Record]:
    """Yield for each row of a micro-batch its texts, and its tensors that are not finite."""
    texts = {name: batch[name] for name in _TEXTS if isinstance(batch.get(name), Tensor)}
    num_rows = len(next(iter(texts.values()), ()))
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.dim()}
    for i in range(num_rows):
        row = {name.removesuffix("_ids"): tokenizer.decode(ids[i].tolist()) for name, ids in texts.items()}
        not_finite = [name for name, value in tensors.items() if _is_bad(value, i, num_rows)]
        yield {"micro_batch": number, "row": i, **row, "not_finite": not_finite}


def _is_bad(value: Tensor, row: int, num_rows: int) -> bool:
    """Tell whether a tensor that has a part per row has one that is not finite in this row."""
    return len(value) == num_rows and not bool(torch.isfinite(value[row]).all())
