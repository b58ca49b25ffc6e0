"""One HTTP call whose answer is limited in bytes and in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self

import httpx2


class AnswerTooLong(ValueError):
    """An answer has more bytes than it may have."""


class HttpAnswer(NamedTuple):
    """What a server answered."""

    status: int
    reason_phrase: str
    headers: httpx2.Headers
    content: bytes


def read_answer(
    client: httpx2.Client, method: str, url: str, *, max_bytes: int, max_seconds: float, **content: Any
) -> HttpAnswer:
    """Call a server once and return its answer, of any status.

    Args:
        client: Makes the call on a connection of its own, so it should keep none alive.
        method: Such as `GET`.
        url: The whole address.
        max_bytes: Bytes that the answer may have, after its decompression.
        max_seconds: Seconds from the beginning of the call to the end of the answer.
        content: The body, as `client.stream` takes it.

    Raises:
        AnswerTooLong: the answer has more than `max_bytes`; the rest is not read.
        httpx2.RequestError: there is no answer, or it is not complete after `max_seconds`.
    """
    body = bytearray()
    with _Deadline(max_seconds) as deadline:
        try:
            with client.stream(method, url, extensions={"trace": deadline.watch}, **content) as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > max_bytes:
                        raise AnswerTooLong(f"it has more than {max_bytes:,} bytes")
        except httpx2.TransportError:
            if not deadline.is_over:
                raise
        if deadline.is_over:  # an answer without a length ends with the connection, so that it looks complete
            raise httpx2.ReadTimeout(f"no complete answer in {max_seconds:g} s")
    return HttpAnswer(response.status_code, response.reason_phrase, response.headers, bytes(body))


class _Deadline:
    """Shuts down the connection of a call after some seconds.

    The timeouts of an HTTP client are each for one read, and a server that sends a byte now and then never exceeds one.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Note the connection's socket, which TLS replaces; the "trace" extension of httpx2 calls it."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self.is_over:
                self._shut_down()

    def _end(self) -> None:
        self.is_over = True
        self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                # Not the method of a TLS socket, which would have the thread that reads it go on without TLS.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
