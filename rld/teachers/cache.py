"""What a teacher said of passages, kept on disk, so that its forward is paid for once.

A cache is a folder with a manifest, which tells the teacher's weights, the vocabulary, the length of a shortlist and
which hidden states go with it, and shards of shortlists (`payload.py`), which tell the same, so one that came from
another folder is noticed. A shard is called by the hash of its bytes, so one that was cut short is noticed too; what it
holds is found by the hash of a passage's token ids, so another prompt, template or answer is another passage. Passages
that are in no shard are scored by the teacher and written into a new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import CacheError, TeacherError
from rld.models.hidden_states import StateKey
from rld.models.logprob_source import LogprobSource, ScoredSequence, SourceInfo, TopKLogprobs
from rld.models.tokenizers import vocabulary_hash
from rld.teachers.wire_format import PayloadError, pack_shortlist, unpack_shortlist
from rld.utils.files import read_json, write_bytes, write_json

_VERSION = 3

_TOGETHER = 256
"""Passages of a shard at most; with hidden states fewer, for they are large."""


class CachedLogprobs(LogprobSource):
    """A lister whose shortlists are kept in a folder. All that is in the folder is read into memory.

    Args:
        lister: What is asked for passages that are not there yet.
        folder: Of this teacher alone; made if it isn't there.
        top_k: The lister's.
    """

    def __init__(self, lister: LogprobSource, folder: Path, top_k: int) -> None:
        self.lister, self.folder, self.top_k, self.name = lister, folder, top_k, lister.name
        self._known: dict[str, TopKLogprobs] = {}
        self._of: dict[str, str] = {}
        """Whose shortlists these are: in the manifest and in every shard."""
        self._found = 0

    def meet(self, student: PreTrainedTokenizerBase) -> None:
        """Meet the lister, and read what it said before.

        Raises:
            CacheError: the folder is another teacher's, or damaged.
        """
        vocabulary = vocabulary_hash(student)
        if self._of.get("vocabulary") == vocabulary:
            return  # it has
        self.lister.meet(student)
        self._of = {"version": str(_VERSION), "teacher": self.about().fingerprint}
        self._of |= {"vocabulary": vocabulary, "top_k": str(self.top_k)}
        self._of["states"] = ", ".join(map(str, self.taps)) or "none"
        path = self.folder / "manifest.json"
        if path.is_file():
            self._require_ours(self.folder, _manifest(path))
        self._known = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            self._read(shard)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                write_json(path, self._of)
        except OSError as error:
            raise CacheError(f"{self.folder} can't be written: {error.strerror}; name another folder") from error

    @property
    def is_elsewhere(self) -> bool:
        return self.lister.is_elsewhere

    @property
    def model(self) -> PreTrainedModel | None:
        return self.lister.model

    @property
    def taps(self) -> tuple[StateKey, ...]:
        return self.lister.taps

    def about(self) -> SourceInfo:
        return self.lister.about()

    def score(self, passages: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        keys = [_key(passage, temperature) for passage in passages]
        missing = {key: passage for key, passage in zip(keys, passages, strict=True) if key not in self._known}
        new = list(missing)
        size = max(1, _TOGETHER // (1 + len(self.taps)))
        for chosen in (new[start : start + size] for start in range(0, len(new), size)):
            said = self.lister.score([missing[key] for key in chosen], temperature)
            self._write(chosen, said)
        run = sum(len(passage.ids) for passage in missing.values())
        self._found += sum(len(passage.ids) for passage in passages) - run
        return [self._known[key] for key in keys]

    def answer(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        return self.lister.answer(prompts, max_new_tokens)

    def take_found(self) -> int:
        found, self._found = self._found, 0
        return found

    def _require_ours(self, path: Path, before: Mapping[str, Any]) -> None:
        """Refuse a folder or a shard that was written for another teacher."""
        changed = [key for key in self._of if str(before.get(key)) != self._of[key]]
        changed = changed[:1] if "version" in changed else changed  # it may have other keys
        if changed:
            told = ", ".join(f"{key} {before.get(key)}, now {self._of[key]}" for key in changed)
            raise CacheError(f"{path} is stale: it was written with {told}; delete it, or name another folder")

    def _write(self, keys: Sequence[str], said: Sequence[TopKLogprobs]) -> None:
        passages = [[key, len(one.tail)] for key, one in zip(keys, said, strict=True)]
        # in one entry, because safetensors writes several in any order, and the hash is of all bytes
        about = {"shard": json.dumps(self._of | {"passages": passages})}
        shortlist = TopKLogprobs.concatenated(said)
        if not shortlist.is_sound():
            raise TeacherError(f"teacher '{self.name}' gives values that are no log-probabilities; nothing was kept")
        data = pack_shortlist(shortlist, about)
        path = self.folder / f"{_digest(data)}.safetensors"
        try:
            write_bytes(path, data)
        except OSError as error:
            raise CacheError(f"{path} can't be written: {error.strerror}; make room, or name another folder") from error
        self._read(path)  # what is trained on is what was stored, in the first epoch too

    def _read(self, shard: Path) -> None:
        data = shard.read_bytes()
        fix = "delete it: what it held is scored again"
        if _digest(data) != shard.stem:
            raise CacheError(f"{shard} is damaged, or was cut short; {fix}")
        try:
            shortlist, about = unpack_shortlist(data, with_layers=bool(self.taps))
            told = json.loads(about["shard"])
            keys, sizes = zip(*told["passages"], strict=True)
        except (PayloadError, KeyError, ValueError, TypeError) as error:
            raise CacheError(f"{shard} is no shard of a cache: {error}; {fix}") from error
        self._require_ours(shard, told)
        self._known |= dict(zip(keys, shortlist.split(sizes), strict=True))


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise CacheError(f"{path} is damaged, or was cut short: {error}; delete it") from error
    if not isinstance(manifest, dict):
        raise CacheError(f"{path} is no manifest of a cache; delete it")
    return manifest


def _key(passage: ScoredSequence, temperature: float) -> str:
    numbers = np.array([passage.num_scored, *passage.ids], dtype=np.int32).tobytes()
    return hashlib.sha256(numbers + repr(float(temperature)).encode()).hexdigest()[:24]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]
