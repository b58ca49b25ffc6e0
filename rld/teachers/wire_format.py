"""Top-k log-probabilities and scored sequences as bytes: what goes over the wire and into a cache.

Both are safetensors. Log-probabilities of k named tokens take `4k + 6` bytes a token, and one more for each 65,536
tokens of the vocabulary. The ids are stored in ascending order, as their lower 16 bits and the number of ids on each
page of 65,536. Log-probabilities are in half precision (relative error 2^-11), those of the sampled tokens in single
precision. At k = 64 that is 263 bytes for a vocabulary of up to 65,536, 265 for one of 152,000. Hidden states, if any,
are in bfloat16, in which most teachers compute them.

Shapes: N tokens, J named tokens, P pages, R sequences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rld.models.logprob_source import ScoredSequence, TopKLogprobs

_PAGE = 1 << 16
"""Token ids of a page."""

MAX_IDS = 1 << 24
"""Token ids are below it: no vocabulary comes near, and a corrupt file should not ask for pages without end."""

_LOGPROB_ARRAYS = {
    "low": (np.uint16, 2),
    "pages": (np.uint8, 2),
    "log_p": (np.float16, 2),
    "tail": (np.float16, 1),
    "sampled": (np.float32, 1),
}
"""Type and number of axes of each array."""

_STATE_ARRAYS = {"layers": (np.uint16, 3)}

_SEQUENCE_ARRAYS = {"ids": (np.int32, 1), "lengths": (np.int32, 1), "scored": (np.int32, 1)}


class PayloadError(ValueError):
    """Bytes that hold no log-probabilities or no sequences."""


_MAX_HEADER = 1 << 16
"""Bytes of the safetensors header and the metadata."""


def max_logprob_bytes(num_tokens: int, k: int) -> int:
    """Return how many bytes the log-probabilities of N tokens with k named ones can have, without hidden states."""
    return num_tokens * (4 * k + 6 + MAX_IDS // _PAGE) + _MAX_HEADER


def pack_logprobs(logprobs: TopKLogprobs, metadata: Mapping[str, str]) -> bytes:
    """Return log-probabilities `[N, J]` of at most 255 named tokens as bytes, with `metadata`."""
    ids_NJ = logprobs.ids.cpu().numpy().astype(np.int64)
    num_pages = int(ids_NJ.max(initial=0)) // _PAGE + 1
    pages_NP = np.stack([(ids_NJ // _PAGE == page).sum(1) for page in range(num_pages)], axis=1)
    arrays: dict[str, Any] = {
        "low": (ids_NJ % _PAGE).astype(np.uint16),
        "pages": pages_NP.astype(np.uint8),
        "log_p": logprobs.log_p.cpu().numpy().astype(np.float16),
        "tail": logprobs.tail.cpu().numpy().astype(np.float16),
        "sampled": logprobs.sampled.cpu().numpy().astype(np.float32),
    }
    if logprobs.layers is not None:
        arrays["layers"] = logprobs.layers.cpu().bfloat16().view(torch.uint16).numpy()
    data: bytes = save(arrays, metadata=dict(metadata))
    return data


def unpack_logprobs(data: bytes, with_layers: bool = False) -> tuple[TopKLogprobs, dict[str, str]]:
    """Return the log-probabilities in `data`, in the precision that they were stored in, and the metadata.

    Args:
        data: What `pack_logprobs` returned.
        with_layers: Whether it should hold hidden states.

    Raises:
        PayloadError: it holds no log-probabilities.
    """
    arrays = _arrays(data, _LOGPROB_ARRAYS | _STATE_ARRAYS if with_layers else _LOGPROB_ARRAYS)
    parts = [_ids(arrays), arrays["log_p"], arrays["tail"], arrays["sampled"]]
    tensors = [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
    if with_layers:
        if len(arrays["layers"]) != len(arrays["tail"]):
            raise PayloadError("its arrays have different sizes")
        tensors.append(torch.from_numpy(arrays["layers"]).view(torch.bfloat16))
    logprobs = TopKLogprobs(*tensors)
    if not logprobs.is_valid():
        raise PayloadError("it holds values that are no ids or no log-probabilities")
    return logprobs, _metadata(data)


def _ids(arrays: Mapping[str, Any]) -> Any:
    """Return the token ids `[N, J]` that their lower bits and their numbers on each page stand for."""
    low_NJ, pages_NP = arrays["low"].astype(np.int64), arrays["pages"].astype(np.int64)
    size, width = low_NJ.shape
    shapes = [arrays[name].shape for name in ("log_p", "tail", "sampled")]
    if shapes != [(size, width), (size,), (size,)] or not 0 < pages_NP.shape[1] <= MAX_IDS // _PAGE or not width:
        raise PayloadError("its arrays have different sizes")
    if len(pages_NP) != size or (pages_NP.sum(1) != width).any():
        raise PayloadError("its pages do not add up")
    page_NJ = np.repeat(np.tile(np.arange(pages_NP.shape[1]), size), pages_NP.ravel()).reshape(size, width)
    return (page_NJ * _PAGE + low_NJ).astype(np.int32)


def pack_sequences(sequences: Sequence[ScoredSequence], metadata: Mapping[str, str]) -> bytes:
    """Return sequences as bytes, with `metadata`."""
    arrays = {
        "ids": np.array([i for sequence in sequences for i in sequence.ids], dtype=np.int32),
        "lengths": np.array([len(sequence.ids) for sequence in sequences], dtype=np.int32),
        "scored": np.array([sequence.num_scored for sequence in sequences], dtype=np.int32),
    }
    data: bytes = save(arrays, metadata=dict(metadata))
    return data


def unpack_sequences(data: bytes) -> tuple[list[ScoredSequence], dict[str, str]]:
    """Return the sequences in `data` and the metadata.

    Raises:
        PayloadError: it holds no sequences.
    """
    arrays = _arrays(data, _SEQUENCE_ARRAYS)
    ids, lengths_R, scored_R = arrays["ids"], arrays["lengths"].astype(np.int64), arrays["scored"].astype(np.int64)
    if lengths_R.shape != scored_R.shape or not len(lengths_R) or lengths_R.sum() != len(ids):
        raise PayloadError("the lengths of its sequences do not add up")
    if (scored_R < 1).any() or (scored_R >= lengths_R).any():
        raise PayloadError("a sequence needs a token that is scored, and one before it")
    parts = np.split(ids, np.cumsum(lengths_R)[:-1])
    return [ScoredSequence(part.tolist(), int(n)) for part, n in zip(parts, scored_R, strict=True)], _metadata(data)


def _arrays(data: bytes, expected: Mapping[str, tuple[Any, int]]) -> dict[str, Any]:
    """Return the arrays in safetensors, if they have the names, types and axes that are expected."""
    try:
        arrays: dict[str, Any] = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise PayloadError(f"it is no safetensors: {error}") from error
    if arrays.keys() != expected.keys():
        raise PayloadError(f"it holds {', '.join(sorted(arrays)) or 'nothing'}, not {', '.join(sorted(expected))}")
    for name, (kind, axes) in expected.items():
        if (arrays[name].dtype, arrays[name].ndim) != (np.dtype(kind), axes):
            raise PayloadError(f"its array {name} has another type, or another number of axes")
    return arrays


def _metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of safetensors, whose header starts with its length in 8 bytes and is JSON."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata
