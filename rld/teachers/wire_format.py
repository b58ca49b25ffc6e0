"""Shortlists and passages as bytes: what goes over the wire and into the cache.

Both are safetensors. A shortlist of k tokens takes `4k + 6` bytes a token and one more for each 65,536 tokens of the
vocabulary: the ids are stored in ascending order as their lower 16 bits and the number of ids on each page of 65,536,
log-probabilities in half precision (relative error 2^-11), the sampled token's in single precision. At k = 64 that is
263 bytes for a vocabulary of up to 65,536, 265 for one of 152,000. Hidden states, if any, are stored in bfloat16, in
which most teachers compute them.

Shapes: N tokens, J tokens of a shortlist, P pages, R passages.
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

_MAX_IDS = 1 << 24
"""Token ids are below it: no vocabulary comes near, and a corrupt file should not ask for pages without end."""

_SHORTLIST = {"low": (np.uint16, 2), "pages": (np.uint8, 2), "log_p": (np.float16, 2), "tail": (np.float16, 1)}
_SHORTLIST |= {"sampled": (np.float32, 1)}

_LAYERS = {"layers": (np.uint16, 3)}

_PASSAGES = {"ids": (np.int32, 1), "lengths": (np.int32, 1), "scored": (np.int32, 1)}


class PayloadError(ValueError):
    """Bytes that hold no shortlist or passages."""


def pack_shortlist(shortlist: TopKLogprobs, about: Mapping[str, str]) -> bytes:
    """Return a shortlist `[N, J]` of at most 255 tokens as bytes, with what is said `about` it."""
    ids_NJ = shortlist.ids.cpu().numpy().astype(np.int64)
    num_pages = int(ids_NJ.max(initial=0)) // _PAGE + 1
    pages_NP = np.stack([(ids_NJ // _PAGE == page).sum(1) for page in range(num_pages)], axis=1)
    arrays: dict[str, Any] = {
        "low": (ids_NJ % _PAGE).astype(np.uint16),
        "pages": pages_NP.astype(np.uint8),
        "log_p": shortlist.log_p.cpu().numpy().astype(np.float16),
        "tail": shortlist.tail.cpu().numpy().astype(np.float16),
        "sampled": shortlist.sampled.cpu().numpy().astype(np.float32),
    }
    if shortlist.layers is not None:
        arrays["layers"] = shortlist.layers.cpu().bfloat16().view(torch.uint16).numpy()
    packed: bytes = save(arrays, metadata=dict(about))
    return packed


def unpack_shortlist(data: bytes, with_layers: bool = False) -> tuple[TopKLogprobs, dict[str, str]]:
    """Return the shortlist in `data`, numbers in the precision that they were stored in, and its `about`.

    Args:
        with_layers: Whether there should be hidden states in it.

    Raises:
        PayloadError: it holds none.
    """
    arrays = _arrays(data, _SHORTLIST | _LAYERS if with_layers else _SHORTLIST)
    low_NJ, pages_NP = arrays["low"].astype(np.int64), arrays["pages"].astype(np.int64)
    size, width = low_NJ.shape
    shapes = [arrays[name].shape for name in ("log_p", "tail", "sampled")]
    if (
        (with_layers and len(arrays["layers"]) != size)
        or shapes != [(size, width), (size,), (size,)]
        or not 0 < pages_NP.shape[1] <= _MAX_IDS // _PAGE
    ):
        raise PayloadError("its parts have different sizes")
    if len(pages_NP) != size or (pages_NP.sum(1) != width).any():
        raise PayloadError("its pages do not add up")
    page_NJ = np.repeat(np.tile(np.arange(pages_NP.shape[1]), size), pages_NP.ravel()).reshape(size, width)
    ids_NJ = page_NJ * _PAGE + low_NJ
    parts = (ids_NJ.astype(np.int32), arrays["log_p"], arrays["tail"], arrays["sampled"])
    tensors = [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]
    tensors += [torch.from_numpy(arrays["layers"]).view(torch.bfloat16)] if with_layers else []
    shortlist = TopKLogprobs(*tensors)
    if not shortlist.is_sound():
        raise PayloadError("it holds values that are no ids or no log-probabilities")
    return shortlist, _about(data)


def pack_passages(passages: Sequence[ScoredSequence], about: Mapping[str, str]) -> bytes:
    """Return passages as bytes, with what is said `about` them."""
    arrays = {
        "ids": np.array([i for passage in passages for i in passage.ids], dtype=np.int32),
        "lengths": np.array([len(passage.ids) for passage in passages], dtype=np.int32),
        "scored": np.array([passage.num_scored for passage in passages], dtype=np.int32),
    }
    packed: bytes = save(arrays, metadata=dict(about))
    return packed


def unpack_passages(data: bytes) -> tuple[list[ScoredSequence], dict[str, str]]:
    """Return the passages in `data`, and its `about`.

    Raises:
        PayloadError: it holds none.
    """
    arrays = _arrays(data, _PASSAGES)
    ids, lengths_R, scored_R = arrays["ids"], arrays["lengths"].astype(np.int64), arrays["scored"].astype(np.int64)
    if lengths_R.shape != scored_R.shape or not len(lengths_R) or lengths_R.sum() != len(ids):
        raise PayloadError("the lengths of its passages do not add up")
    if (scored_R < 1).any() or (scored_R >= lengths_R).any():
        raise PayloadError("a passage needs a token before those to be scored, and one of these")
    parts = np.split(ids, np.cumsum(lengths_R)[:-1])
    return [ScoredSequence(part.tolist(), int(n)) for part, n in zip(parts, scored_R, strict=True)], _about(data)


def _arrays(data: bytes, expected: Mapping[str, tuple[Any, int]]) -> dict[str, Any]:
    try:
        arrays: dict[str, Any] = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise PayloadError(f"it is no safetensors: {error}") from error
    found = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    if found != {name: (np.dtype(kind), axes) for name, (kind, axes) in expected.items()}:
        raise PayloadError(f"it holds {', '.join(sorted(found)) or 'nothing'}, not {', '.join(sorted(expected))}")
    return arrays


def _about(data: bytes) -> dict[str, str]:
    """The metadata in the header of what `_arrays` could read: its length in 8 bytes, then JSON."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about: dict[str, str] = header.get("__metadata__", {})
    return about
