"""HTTP calls to a teacher server, repeated with growing pauses until the server counts as down."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2
from pydantic_core import from_json

from rld.errors import TeacherDown, TeacherError
from rld.teachers.http_answer import AnswerTooLong, HttpAnswer, read_answer
from rld.utils import secrets
from rld.utils.interrupts import Waiting
from rld.utils.messages import one_line
from rld.utils.os_errors import is_system_failure

TOKEN = "RLD_TEACHER_TOKEN"
"""The environment variable with the bearer token."""

SHOULD_RETRY = "x-should-retry"
"""The header that is `false` where a failure would come again. Clients of OpenAI's API read it as well."""

_FIRST_PAUSE = 0.25
"""Seconds after the first failure; each further pause is twice as long."""

_LONGEST_PAUSE = 10.0
"""Seconds."""

_CONNECT_TIMEOUT = 10.0
"""Seconds."""

_READ_TIMEOUT = 300.0
"""Seconds without a byte, or `timeout_seconds` where that is more; a large teacher may take minutes for a rollout."""

_TOTAL_FACTOR = 2
"""Reads without a byte that a call may take in all: one until the answer begins, and one until it ends."""

_CONNECTION_VARIABLES = frozenset(
    {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"}
)
"""Variables of the environment by which httpx2 connects; those of proxies may be in small letters."""

_MAX_BYTES = 8 << 20
"""Bytes of an answer whose size does not depend on a request, such as a tokenizer's added tokens."""


def longest_call(timeout_seconds: float) -> float:
    """Return the seconds after which a call has succeeded or its server counts as down, at most.

    A try may begin just before `timeout_seconds` have passed since the first one failed.
    """
    return 2 * _TOTAL_FACTOR * _read_timeout(timeout_seconds) + timeout_seconds


def bearer_token(variable: str = TOKEN) -> str | None:
    """Return the token in an environment variable, without white space around it; None where there is none.

    Raises:
        TeacherError: a header can't carry it. The message does not contain it.
    """
    token = os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise TeacherError(f"the bearer token in the environment variable {variable} should be printable ASCII")
    secrets.remember_value(token)
    return token or None


class _Failure(NamedTuple):
    """Why a call failed, and the seconds after which the server wants to be asked again."""

    reason: str
    retry_after: float = 0.0


class HttpClient:
    """Calls one server, and repeats a call while the server does not answer, is full or is broken.

    Args:
        url: The server's address.
        name: The teacher's name in errors. None: the server's host and port.
        timeout_seconds: Seconds after the first failure until the server counts as down.
        token_variable: The environment variable with the bearer token.

    Raises:
        TeacherError: the address is no URL, or has a user or password in it.
    """

    def __init__(self, url: str, name: str | None, *, timeout_seconds: float, token_variable: str) -> None:
        self.url, self.timeout_seconds, self._token_variable = url, timeout_seconds, token_variable
        try:
            self.name = name or httpx2.URL(url).netloc.decode()
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise TeacherError(f"{url} is no URL of a teacher: {error}") from error
        if secrets.has_credentials(url):
            secrets.remember({"url": url})
            fix = f"put a bearer token into the environment variable {token_variable} instead"
            raise TeacherError(f"the address of teacher '{name or secrets.MASK}' has a user or a secret in it; {fix}")
        self._client: httpx2.Client | None = None
        self._lock = threading.Lock()

    def error(self, message: str, kind: type[TeacherError] = TeacherError) -> TeacherError:
        """Return an error that names the teacher and its address."""
        return kind(f"teacher '{self.name}' at {self.url}: {message}")

    def call_json(self, method: str, url: str, **content: Any) -> Any:
        """Return the answer to a call as JSON; errors are as in `call`."""
        data = self.call(method, url, **content)
        try:
            return from_json(data)
        except ValueError as error:
            reason = "nested too deep" if "recursion limit" in str(error) else error
            raise self.error(f"its answer to {httpx2.URL(url).path} is no JSON: {reason}") from error

    def call(self, method: str, url: str, *, max_bytes: int = _MAX_BYTES, **content: Any) -> bytes:
        """Repeat a call until it succeeds, and return the body of the answer.

        Args:
            method: Such as `GET`.
            url: The whole address.
            max_bytes: Bytes that the answer may have.
            content: The body of the request, as httpx2 takes it.

        Raises:
            TeacherDown: it did not succeed in `timeout_seconds` seconds after the first failure.
            TeacherError: the server refuses the request, or its answer is too long.
            StopRequested: it does not succeed, and the process was requested to stop.
        """
        with Waiting() as waiting:
            return self._repeat(waiting, method, url, max_bytes=max_bytes, **content)

    def _repeat(self, waiting: Waiting, method: str, url: str, **content: Any) -> bytes:
        deadline, pause = math.inf, _FIRST_PAUSE
        while True:
            result = self._try(method, url, **content)
            if not isinstance(result, _Failure):
                return result
            waiting.fail()
            deadline = min(deadline, time.monotonic() + self.timeout_seconds)
            remaining_seconds = deadline - time.monotonic()
            if remaining_seconds <= 0:
                reason = f"no answer for {self.timeout_seconds:g} s; the last try ended with {result.reason}"
                raise self.error(reason, TeacherDown)
            # A random pause, so that clients which failed at the same time come back at different times.
            wait = max(result.retry_after, pause * random.Random().uniform(0.5, 1.0))
            time.sleep(min(wait, remaining_seconds))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try(self, method: str, url: str, **content: Any) -> bytes | _Failure:
        """Call once.

        Raises:
            TeacherError: the server refuses the request, or its answer is too long, so a repetition is of no use.
        """
        try:
            seconds = _TOTAL_FACTOR * _read_timeout(self.timeout_seconds)
            answer = read_answer(self._connected(), method, url, max_seconds=seconds, **content)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError) as error:
            raise self.error(f"this is no URL: {error}") from error
        except httpx2.TransportError as error:
            return _Failure(f"{type(error).__name__}: {error}")
        except (httpx2.RequestError, AnswerTooLong) as error:
            raise self.error(f"its answer to {httpx2.URL(url).path} can't be read: {error}") from error
        if answer.status == 200:
            return answer.content
        may_succeed = answer.status in (408, 425, 429) or answer.status >= 500
        if not may_succeed or answer.headers.get(SHOULD_RETRY) == "false":
            raise self.error(self._refusal(answer, httpx2.URL(url).path))
        return _Failure(f"{answer.status} {_message(answer)}", _seconds(answer.headers.get("retry-after")))

    def _connected(self) -> httpx2.Client:
        with self._lock:
            if self._client is None:
                token = bearer_token(self._token_variable)
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                timeout = httpx2.Timeout(_read_timeout(self.timeout_seconds), connect=_CONNECT_TIMEOUT)
                limits = httpx2.Limits(max_keepalive_connections=0)  # as `read_answer` needs it
                with self._mistakes_in_environment():
                    self._client = httpx2.Client(headers=headers, timeout=timeout, limits=limits)
            return self._client

    @contextmanager
    def _mistakes_in_environment(self) -> Iterator[None]:
        """Name the variables of the environment where a client can't be made with their proxies or certificates.

        Their values stay unsaid, for a proxy's address may have a password in it.
        """
        try:
            yield
        except (httpx2.InvalidURL, ValueError, ImportError, OSError) as error:
            if is_system_failure(error):
                raise
            reason = "the address of a proxy is none"
            if isinstance(error, ImportError):
                reason = "a SOCKS proxy needs the package socksio (pip install socksio)"
            elif isinstance(error, OSError):
                reason = f"certificates can't be read: {error.strerror or error}"
            names = ", ".join(name for name in os.environ if name.upper() in _CONNECTION_VARIABLES)
            raise self.error(f"no connection can be made with {names} of the environment: {reason}") from error

    def _refusal(self, answer: HttpAnswer, path: str) -> str:
        match answer.status:
            case 401 | 403:
                place = "the one in" if os.environ.get(self._token_variable) else "there is none in"
                return f"it wants another bearer token; {place} the environment variable {self._token_variable}"
            case 404:
                return f"it has no {path}; is this an rld serve-teacher, or should it end in /v1?"
        return f"it refuses with {answer.status}: {_message(answer)}"


def _read_timeout(timeout_seconds: float) -> float:
    return max(_READ_TIMEOUT, timeout_seconds)


def _message(answer: HttpAnswer) -> str:
    """Return the message in an answer that is an error, in one line."""
    try:
        message: Any = from_json(answer.content)
        message = message.get("detail", message.get("error", message)) if isinstance(message, dict) else message
        message = message.get("message", message) if isinstance(message, dict) else message
    except ValueError:
        message = answer.content.decode(errors="replace")
    return one_line(message)[:200] or answer.reason_phrase


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:  # a date
        return 0.0
    return seconds if 0 <= seconds < math.inf else 0.0
