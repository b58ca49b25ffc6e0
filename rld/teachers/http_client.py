"""HTTP calls to a teacher server, repeated with growing pauses until the server counts as down."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from abc import abstractmethod
from typing import Any

import httpx2
from transformers import PreTrainedTokenizerBase

from rld.errors import TeacherDown, TeacherError
from rld.models.logprob_source import LogprobSource, ScoredSequence, SourceInfo
from rld.models.tokenizers import probe_ids

TOKEN = "RLD_TEACHER_TOKEN"
"""The environment variable with the bearer token."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0

_LONGEST_ANSWER = 300.0
"""Seconds without a byte, or `patience` where that is more; a large teacher may take minutes over a rollout."""

AGREEMENT_NATS = 0.1
"""Nats by which two scorings of the same tokens may differ: half precision in batches of different sizes."""


def bearer_token(variable: str = TOKEN) -> str | None:
    """Return the token in an environment variable, without the space around it; None where there is none.

    Raises:
        TeacherError: a header can't carry it. What it is, is not said.
    """
    token = os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise TeacherError(f"the bearer token in the environment variable {variable} should be printable ASCII")
    return token or None


class HttpClient(LogprobSource):
    """What both kinds share: calls with retries, and the check at the start."""

    def __init__(
        self, url: str, name: str | None, top_k: int, patience: float, token_variable: str, fingerprint: str | None
    ) -> None:
        self.url, self.top_k, self.patience, self._token_variable = url, top_k, patience, token_variable
        self._expected = fingerprint
        try:
            self.name = name or httpx2.URL(url).netloc.decode()
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise TeacherError(f"{url} is no URL of a teacher: {error}") from error
        self._about: SourceInfo | None = None
        self._client: httpx2.Client | None = None
        self._lock = threading.Lock()

    @property
    def is_elsewhere(self) -> bool:
        return True

    def about(self) -> SourceInfo:
        assert self._about is not None  # it has been met
        return self._about

    def meet(self, student: PreTrainedTokenizerBase) -> None:
        self._about = self._introduce(student)
        self._require_same(self._about.fingerprint)
        text = next(ids for ids in probe_ids(student) if len(ids) > 1)
        first, again = (self.score([ScoredSequence(text, len(text) - 1)], 1.0)[0].sampled for _ in range(2))
        apart = (first - again).abs().max().item()
        if not apart <= AGREEMENT_NATS:
            raise self._error(f"it scores the same tokens differently twice, by {apart:.3g} nats; see what it serves")

    def _require_same(self, fingerprint: str) -> None:
        """Refuse other weights than those that it started with, or those that it must have."""
        self._expected = self._expected or fingerprint
        if fingerprint != self._expected:
            raise self._error(
                f"it serves other weights (fingerprint {fingerprint}, not {self._expected}); serve the same model, or "
                "start a run of its own"
            )

    @abstractmethod
    def _introduce(self, student: PreTrainedTokenizerBase) -> SourceInfo:
        """Ask what it is, and refuse one that reads other tokens."""

    def _error(self, what: str, kind: type[TeacherError] = TeacherError) -> TeacherError:
        return kind(f"teacher '{self.name}' at {self.url}: {what}")

    def _call(self, method: str, url: str, **content: Any) -> httpx2.Response:
        """Call until there is an answer.

        Raises:
            TeacherDown: there was none for `patience` seconds after the first failure.
            TeacherError: the server refuses the request.
        """
        deadline, pause = math.inf, _FIRST_PAUSE
        while True:
            wait = 0.0
            try:
                response = self._connected().request(method, url, **content)
                if response.status_code == 200:
                    return response
                trouble = f"{response.status_code} {describe_response(response)}"
                if response.status_code not in (408, 425, 429) and response.status_code < 500:
                    raise self._error(self._refused(response))
                wait = _seconds(response.headers.get("retry-after"))
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError) as error:
                raise self._error(f"this is no URL: {error}") from error
            except httpx2.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
            except httpx2.RequestError as error:
                raise self._error(f"its answer can't be read: {error}") from error
            deadline = min(deadline, time.monotonic() + self.patience)
            wait = max(wait, pause * random.Random().uniform(0.5, 1.0))  # apart from those that failed at the same time
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._error(f"no answer for {self.patience:g} s; the last try ended with {trouble}", TeacherDown)
            time.sleep(min(wait, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _connected(self) -> httpx2.Client:
        with self._lock:
            if self._client is None:
                token = bearer_token(self._token_variable)
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                timeout = httpx2.Timeout(max(_LONGEST_ANSWER, self.patience), connect=10.0)
                self._client = httpx2.Client(headers=headers, timeout=timeout)
            return self._client

    def _refused(self, response: httpx2.Response) -> str:
        match response.status_code:
            case 401 | 403:
                given = "the one in" if os.environ.get(self._token_variable) else "there is none in"
                return f"it wants another bearer token; {given} the environment variable {self._token_variable}"
            case 404:
                return f"it has no {response.request.url.path}; is this an rld serve-teacher, or should it end in /v1?"
        return f"it refuses with {response.status_code}: {describe_response(response)}"

    def _json(self, response: httpx2.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self._error(f"its answer to {response.request.url.path} is no JSON: {error}") from error


def describe_response(response: httpx2.Response) -> str:
    """What a refusal says, in one line."""
    try:
        told: Any = response.json()
        told = told.get("detail", told.get("error", told)) if isinstance(told, dict) else told
        told = told.get("message", told) if isinstance(told, dict) else told
    except ValueError:
        told = response.text
    return " ".join(str(told).split())[:200] or response.reason_phrase


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:  # a date
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0
