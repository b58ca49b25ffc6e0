"""Teachers on a server: `rld serve-teacher`, or an OpenAI-compatible endpoint with vLLM's `prompt_logprobs`.

A call is repeated while the server does not answer, is full or is broken, and raises `TeacherDown` after
`timeout_seconds`. A request that the server refuses raises `TeacherError` at once.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from rld.errors import TeacherError
from rld.models.logprob_source import LogprobSource, ScoredSequence, SourceInfo, TopKLogprobs
from rld.models.tokenizer_profile import PROBES, probe_ids, special_tokens
from rld.teachers.http_client import TOKEN, HttpClient
from rld.teachers.server_answers import (
    AnswerError,
    Completion,
    read_answers,
    read_completions,
    read_health,
    read_models,
    read_prompt_logprobs,
)
from rld.teachers.wire_format import PayloadError, max_logprob_bytes, pack_sequences, unpack_logprobs
from rld.types import Answer

AGREEMENT_NATS = 0.1
"""Nats by which two scorings of the same tokens may differ: half precision in batches of different sizes."""

_NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Options of a request that leave the model's distribution as it is. vLLM takes those that are missing from the
model's generation configuration."""

_OPENAI_TOKENS = 8192
"""Tokens of a request: an answer in JSON takes about 4 kB a token."""

_MAX_ENTRY_BYTES = 256
"""Bytes of a token's log-probability in JSON on average; about 70, for most tokens are short."""

_MAX_TEXT_BYTES = 1024
"""Bytes of a generated token's text in JSON on average; far fewer, for most tokens are short."""

_MAX_FRAME_BYTES = 1 << 20
"""Bytes of an answer in JSON beside these."""

_MAX_PROMPTS = 64
"""Prompts of a request for answers."""

_MAX_PROMPT_TOKENS = 65_536
"""Tokens of a request for answers, new ones included: an id takes up to 8 bytes, and a server may take 1 MiB."""

_Item = TypeVar("_Item")


def remote_teacher(
    url: str,
    name: str | None = None,
    top_k: int = 64,
    *,
    timeout_seconds: float = 60.0,
    token_variable: str = TOKEN,
    fingerprint: str | None = None,
    served_model: str | None = None,
) -> LogprobSource:
    """Return the teacher that answers at `url`.

    Args:
        url: The address of an `rld serve-teacher`; one that ends in `/v1` is an OpenAI-compatible endpoint.
        name: Its name in errors. None: its host and port.
        top_k: Number of named tokens, 1 to 255.
        timeout_seconds: How long it may fail to answer, from the first failure on, before it counts as down. A call
            that gets no byte for five minutes, or `timeout_seconds` if that is longer, has failed, and so has one
            whose answer is not complete after twice that time.
        token_variable: The environment variable with the bearer token, if the server asks for one.
        fingerprint: The fingerprint of the weights that it must have. None: of those that it starts with.
        served_model: The name of the model at an OpenAI-compatible endpoint. None: it serves one alone.
    """
    url = url.rstrip("/")
    client = HttpClient(url, name, timeout_seconds=timeout_seconds, token_variable=token_variable)
    if url.endswith("/v1"):
        return OpenAIServer(client, top_k, fingerprint, served_model)
    return RldServer(client, top_k, fingerprint)


class _Server(LogprobSource):
    """A server whose weights are checked.

    Args:
        client: Calls the server.
        top_k: Number of named tokens.
        fingerprint: The fingerprint of the weights that it must have. None: of those that it starts with.
    """

    def __init__(self, client: HttpClient, top_k: int, fingerprint: str | None) -> None:
        self.client, self.top_k, self.name, self.url = client, top_k, client.name, client.url
        self._expected_fingerprint = fingerprint
        self._info: SourceInfo | None = None

    @property
    def is_remote(self) -> bool:
        return True

    def info(self) -> SourceInfo:
        assert self._info is not None  # `connect` has set it
        return self._info

    def connect(self, student: PreTrainedTokenizerBase) -> None:
        self._info = self._read_info(student)
        self._require_same_weights(self._info.fingerprint)
        ids = next(ids for ids in probe_ids(student) if len(ids) > 1)
        first, second = (self.score([ScoredSequence(ids, len(ids) - 1)], 1.0)[0].sampled for _ in range(2))
        difference = (first - second).abs().max().item()
        if not difference <= AGREEMENT_NATS:
            raise self.client.error(
                f"it scores the same tokens differently twice, by {difference:.3g} nats; see what it serves"
            )

    def _require_same_weights(self, fingerprint: str) -> None:
        """Refuse other weights than those that it started with, or those that it must have."""
        self._expected_fingerprint = self._expected_fingerprint or fingerprint
        if fingerprint != self._expected_fingerprint:
            raise self.client.error(
                f"it serves other weights (fingerprint {fingerprint}, not {self._expected_fingerprint}); "
                "serve the same model, or start a run of its own"
            )

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raise an `AnswerError` again as an error that names the server."""
        try:
            yield
        except AnswerError as error:
            raise self.client.error(str(error)) from error

    @abstractmethod
    def _read_info(self, student: PreTrainedTokenizerBase) -> SourceInfo:
        """Ask the server what it serves, and refuse one that reads other tokens than the student."""


class RldServer(_Server):
    """`rld serve-teacher`."""

    _num_named: int | None = None
    """Number of tokens that it names at each place, once it has scored."""

    def _read_info(self, student: PreTrainedTokenizerBase) -> SourceInfo:
        health = self.client.call_json("GET", f"{self.url}/health")
        with self._named_errors():
            info, self._tokenizer, self._max_tokens = read_health(health)
        difference = self._tokenizer.difference(student)
        if difference is not None:
            raise self.client.error(
                f"its tokenizer is not the student's ({difference}), so it would read the student's tokens as other "
                "text; serve a teacher of the student's family, or load this one here with align"
            )
        return info

    def foreign_tokens(self, student: PreTrainedTokenizerBase) -> Mapping[int, str]:
        return self._tokenizer.foreign_tokens(student)

    def score(self, sequences: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        logprobs: list[TopKLogprobs] = []
        for batch in _sequence_batches(sequences, self._max_tokens):
            body = pack_sequences(batch, {"top_k": str(self.top_k), "temperature": repr(temperature)})
            max_bytes = max_logprob_bytes(sum(sequence.num_scored for sequence in batch), self.top_k)
            data = self.client.call("POST", f"{self.url}/score", max_bytes=max_bytes, content=body)
            try:
                scored, metadata = unpack_logprobs(data)
                self._require_same_weights(metadata.get("fingerprint", ""))
                self._require_same_width(scored.ids.shape[1])
                logprobs += scored.split([sequence.num_scored for sequence in batch])
            except (PayloadError, RuntimeError) as error:
                raise self.client.error(f"its answer holds no log-probabilities of the request: {error}") from error
        return logprobs

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Collection[int] = ()) -> list[Answer]:
        answers: list[Answer] = []
        for batch in _prompt_batches(prompts, max_new_tokens):
            request = {"prompts": batch, "max_new_tokens": max_new_tokens, "ends": sorted(ends)}
            max_bytes = len(batch) * max_new_tokens * _MAX_TEXT_BYTES + _MAX_FRAME_BYTES
            content = self.client.call_json("POST", f"{self.url}/generate", max_bytes=max_bytes, json=request)
            with self._named_errors():
                read, fingerprint = read_answers(content, len(batch))
            self._require_same_weights(fingerprint)
            answers += read
        return answers

    def _require_same_width(self, num_named: int) -> None:
        """Refuse another number of named tokens than at first: `top_k`, or as many as the teacher has."""
        self._num_named = self._num_named or min(num_named, self.top_k)
        if num_named != self._num_named:
            raise PayloadError(f"it names {num_named} tokens at each place, not {self._num_named}")


class OpenAIServer(_Server):
    """An OpenAI-compatible endpoint whose completions have vLLM's `prompt_logprobs`.

    Args:
        served_model: The name of its model. None: it serves one alone.
    """

    def __init__(self, client: HttpClient, top_k: int, fingerprint: str | None, served_model: str | None) -> None:
        super().__init__(client, top_k, fingerprint)
        self._model = served_model or ""
        self._vocabulary_size = 0

    def _read_info(self, student: PreTrainedTokenizerBase) -> SourceInfo:
        self._vocabulary_size = len(student)
        self._model = self._listed_model()
        for text, ids in zip(PROBES, probe_ids(student, add_special_tokens=True), strict=True):
            self._require_token_ids(text, ids, add_special_tokens=True)
        for i, token in special_tokens(student).items():
            self._require_token_ids(token, [i], add_special_tokens=False)
        ends = frozenset() if student.eos_token_id is None else frozenset([int(student.eos_token_id)])
        return SourceInfo(hashlib.sha256(self._model.encode()).hexdigest()[:16], ends, 0)

    def _listed_model(self) -> str:
        """Return the name of the model that is asked, which the endpoint must list."""
        listed = self.client.call_json("GET", f"{self.url}/models")
        with self._named_errors():
            names = read_models(listed)
        match names:
            case _ if self._model in names:
                return self._model
            case [name] if not self._model:
                return name
            case _:
                reason = f"it does not serve {self._model}" if self._model else "it serves several models"
                raise self.client.error(f"{reason}; set served_model to one of {', '.join(names)}")

    def _require_token_ids(self, text: str, ids: list[int], *, add_special_tokens: bool) -> None:
        """Refuse a server that encodes a text with other token ids than the student."""
        request = {"model": self._model, "prompt": text, "add_special_tokens": add_special_tokens}
        answer = self.client.call_json("POST", f"{self.url.removesuffix('/v1')}/tokenize", json=request)
        if not isinstance(answer, dict) or answer.get("tokens") != ids:
            raise self.client.error(f"{self._model}'s tokenizer is not the student's (on {text!r})")

    def score(self, sequences: Sequence[ScoredSequence], temperature: float) -> list[TopKLogprobs]:
        if temperature != 1.0:
            raise self.client.error(
                f"an OpenAI-compatible endpoint scores at temperature 1, not {temperature:g}; set it for the rollout"
            )
        options = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": self.top_k}
        num_named = min(self.top_k, self._vocabulary_size)
        logprobs: list[TopKLogprobs] = []
        for batch in _sequence_batches(sequences, _OPENAI_TOKENS):
            num_entries = sum(len(sequence.ids) for sequence in batch) * (self.top_k + 1)
            choices = self._complete([sequence.ids for sequence in batch], options, num_entries * _MAX_ENTRY_BYTES)
            with self._named_errors():
                logprobs += [
                    read_prompt_logprobs(choice.prompt_logprobs, sequence, self.top_k, num_named)
                    for sequence, choice in zip(batch, choices, strict=True)
                ]
        return logprobs

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int, ends: Collection[int] = ()) -> list[Answer]:
        options = {"max_tokens": max_new_tokens, "temperature": 0.0, "stop_token_ids": sorted(ends)}
        return [
            Answer(choice.text, choice.finish_reason != "length")
            for batch in _prompt_batches(prompts, max_new_tokens)
            for choice in self._complete(batch, options, len(batch) * max_new_tokens * _MAX_TEXT_BYTES)
        ]

    def _complete(self, prompts: list[list[int]], options: Mapping[str, Any], num_bytes: int) -> list[Completion]:
        """Return the completions of prompts; `num_bytes` are those that they may have."""
        max_bytes = num_bytes + _MAX_FRAME_BYTES
        request = {"model": self._model, "prompt": prompts, **_NEUTRAL, **options}
        try:
            answer = self.client.call_json("POST", f"{self.url}/completions", max_bytes=max_bytes, json=request)
        except TeacherError as error:
            if "prompt logprobs" not in str(error):
                raise
            fix = f"start it with --max-logprobs {self.top_k}, or set a lower top_k"
            raise self.client.error(f"{error}; {fix}") from error
        with self._named_errors():
            return read_completions(answer, len(prompts))


def _sequence_batches(sequences: Sequence[ScoredSequence], max_tokens: int) -> Iterator[list[ScoredSequence]]:
    sizes = [len(sequence.ids) for sequence in sequences]
    return _batches(sequences, sizes, max_size=max_tokens, max_items=len(sequences))


def _prompt_batches(prompts: Sequence[list[int]], max_new_tokens: int) -> Iterator[list[list[int]]]:
    sizes = [len(ids) + max_new_tokens for ids in prompts]
    return _batches(prompts, sizes, max_size=_MAX_PROMPT_TOKENS, max_items=_MAX_PROMPTS)


def _batches(items: Sequence[_Item], sizes: Sequence[int], *, max_size: int, max_items: int) -> Iterator[list[_Item]]:
    """Yield as many items together as a request may hold, and at least one."""
    batch, total = list[_Item](), 0
    for item, size in zip(items, sizes, strict=True):
        if batch and (total + size > max_size or len(batch) == max_items):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
