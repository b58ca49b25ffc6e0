"""Top-k log-probabilities on disk, so that a teacher reads each sequence once.

A cache is a folder with a manifest and shards (`wire_format.py`). The manifest states the teacher's weights, the
vocabulary, the number of named tokens and which hidden states are stored; so does each shard, so that one from another
folder is noticed. The name of a shard is the hash of its bytes, so that one that was cut short is noticed. Entries are
found by the hash of a sequence's token ids: another prompt, template or answer is another entry. Sequences that are in
no shard are scored by the teacher and written into a new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import CacheError, TeacherError
from rld.models.hidden_states import StateKey
from rld.models.logprob_source import LogprobSource, ScoredSequence, SourceInfo, TopKLogprobs
from rld.models.tokenizer_profile import vocabulary_hash
from rld.teachers.wire_format import PayloadError, pack_logprobs, unpack_logprobs
from rld.types import Answer
from rld.utils.files import read_json, remove_drafts, write_bytes, write_json
from rld.utils.os_errors import is_system_failure

_VERSION = 4

_SHARD_SEQUENCES = 256
"""Sequences of a shard at most; with hidden states fewer, for they are large."""


class CachedLogprobs(LogprobSource):
    """A log-probability source whose results are stored in a folder. The whole folder is read into memory.

    Args:
        source: Scores the sequences that are not stored yet.
        folder: A folder for this teacher alone; created if it does not exist.
        top_k: Number of named tokens that the source gives.
    """

    def __init__(self, source: LogprobSource, folder: Path, top_k: int) -> None:
        self.source, self.folder, self.top_k, self.name = source, folder, top_k, source.name
        self._entries: dict[str, TopKLogprobs] = {}
        self._origin: dict[str, str] = {}
        """What the manifest and every shard state."""
        self._cached_tokens = 0

    def connect(self, student: PreTrainedTokenizerBase) -> None:
        """Connect the source, and read the folder.

        Raises:
            CacheError: the folder is another teacher's, or damaged.
        """
        vocabulary = vocabulary_hash(student)
        if self._origin.get("vocabulary") == vocabulary:
            return  # it is connected
        self.source.connect(student)
        self._origin = {
            "version": str(_VERSION),
            "teacher": self.info().fingerprint,
            "vocabulary": vocabulary,
            "top_k": str(self.top_k),
            "states": ", ".join(map(str, self.state_keys)) or "none",
        }
        path = self.folder / "manifest.json"
        if path.is_file():
            self._require_same_origin(self.folder, _manifest(path))
        self._entries = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._read(shard)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_drafts(self.folder, is_shared=True)
            if not path.is_file():
                write_json(path, self._origin)
        except OSError as error:
            if is_system_failure(error):
                raise
            raise CacheError(f"{self.folder} can't be written: {error.strerror}; name another folder") from error

    def foreign_tokens(self, student: PreTrainedTokenizerBase) -> Mapping[int, str]:
        return self.source.foreign_tokens(student)

    @property
    def is_remote(self) -> bool:
        return self.source.is_remote

    @property
    def model(self) -> PreTrainedModel | None:
        return self.source.model

    @property
    def state_keys(self) -> tuple[StateKey, ...]:
        return self.source.state_keys

    def info(self) -> SourceInfo:
        return self.source.info()

    def score(self, sequences: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        keys = [_key(sequence, temperature) for sequence in sequences]
        missing = {key: sequence for key, sequence in zip(keys, sequences, strict=True) if key not in self._entries}
        new_keys = list(missing)
        size = max(1, _SHARD_SEQUENCES // (1 + len(self.state_keys)))
        for shard_keys in (new_keys[start : start + size] for start in range(0, len(new_keys), size)):
            self._write(shard_keys, self.source.score([missing[key] for key in shard_keys], temperature))
        num_scored = sum(len(sequence.ids) for sequence in missing.values())
        self._cached_tokens += sum(len(sequence.ids) for sequence in sequences) - num_scored
        entries = [self._entries[key] for key in keys]
        if any(len(entry.tail) != sequence.num_scored for entry, sequence in zip(entries, sequences, strict=True)):
            raise CacheError(f"{self.folder} has a shard whose entries are not those of its keys; delete the folder")
        return entries

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Collection[int] = ()) -> list[Answer]:
        return self.source.generate(prompts, max_new_tokens, ends)

    def take_cached_tokens(self) -> int:
        cached_tokens, self._cached_tokens = self._cached_tokens, 0
        return cached_tokens

    def _require_same_origin(self, path: Path, origin: Mapping[str, Any]) -> None:
        """Refuse a folder or a shard that was written for another teacher."""
        changed = [key for key in self._origin if str(origin.get(key)) != self._origin[key]]
        changed = changed[:1] if "version" in changed else changed  # another version may have other keys
        if changed:
            changes = ", ".join(f"{key} {origin.get(key)}, now {self._origin[key]}" for key in changed)
            raise CacheError(f"{path} is stale: it was written with {changes}; delete it, or name another folder")

    def _write(self, keys: Sequence[str], logprobs: Sequence[TopKLogprobs]) -> None:
        """Write a shard, and read it: the first epoch then trains on the stored values, as the others do."""
        entries = [[key, len(sequence.tail)] for key, sequence in zip(keys, logprobs, strict=True)]
        # in one entry of metadata, because safetensors writes several in any order, and the hash is of all bytes
        metadata = {"shard": json.dumps(self._origin | {"entries": entries})}
        concatenated = TopKLogprobs.concatenated(logprobs)
        if not concatenated.is_valid():
            raise TeacherError(f"teacher '{self.name}' gives values that are no log-probabilities; nothing was stored")
        data = pack_logprobs(concatenated, metadata)
        path = self.folder / f"{_digest(data)}.safetensors"
        try:
            write_bytes(path, data)
        except OSError as error:
            if is_system_failure(error):
                raise
            raise CacheError(f"{path} can't be written: {error.strerror}; name another folder") from error
        self._read(path)

    def _read(self, shard: Path) -> None:
        data = shard.read_bytes()
        fix = "delete it: what it held is scored again"
        if _digest(data) != shard.stem:
            raise CacheError(f"{shard} is damaged, or was cut short; {fix}")
        try:
            logprobs, metadata = unpack_logprobs(data, with_layers=bool(self.state_keys))
            origin = json.loads(metadata["shard"])
            sizes = _sizes(origin["entries"], len(logprobs.tail))
        except (PayloadError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise CacheError(f"{shard} is no shard of a cache: {error}; {fix}") from error
        self._require_same_origin(shard, origin)
        self._require_same_shape(shard, logprobs)
        self._entries |= dict(zip(sizes, logprobs.split([*sizes.values()]), strict=True))

    def _require_same_shape(self, shard: Path, logprobs: TopKLogprobs) -> None:
        """Refuse a shard with more named tokens than were asked for, or with others than the shards before it."""
        first = next(iter(self._entries.values()), logprobs)
        shapes = [[tensor.shape[1:] for tensor in values.tensors()] for values in (first, logprobs)]
        has_states = logprobs.layers is None or logprobs.layers.shape[1] == len(self.state_keys)
        if shapes[0] != shapes[1] or logprobs.ids.shape[1] > self.top_k or not has_states:
            raise CacheError(f"{shard} has other numbers of tokens or states than the cache; delete the folder")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise CacheError(f"{path} is damaged, or was cut short: {error}; delete it") from error
    if not isinstance(manifest, dict):
        raise CacheError(f"{path} is no manifest of a cache; delete it")
    return manifest


def _sizes(entries: Any, num_tokens: int) -> dict[str, int]:
    """Return the number of tokens of each entry of a shard, by its key.

    Raises:
        PayloadError: they are no entries of `num_tokens` tokens together.
    """
    sizes = dict(entries)
    are_entries = all(isinstance(key, str) and type(size) is int and size > 0 for key, size in sizes.items())
    if not are_entries or sum(sizes.values()) != num_tokens:
        raise PayloadError("its entries do not add up")
    return sizes


def _key(sequence: ScoredSequence, temperature: float) -> str:
    numbers = np.array([sequence.num_scored, *sequence.ids], dtype=np.int32).tobytes()
    return hashlib.sha256(numbers + repr(float(temperature)).encode()).hexdigest()[:24]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]
