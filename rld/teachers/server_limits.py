"""Limits on the connections of a teacher server: how many there are, and how long each may take to send a request."""

from __future__ import annotations

import asyncio
import resource
import socket

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_MAX_CONNECTIONS = 256
"""Open connections. A run has one or two for each teacher and process, and a waiting request may hold 1 MiB."""

_HEADER_SECONDS = 10.0
"""Seconds from the connection, or from the first byte of a later request, until the headers are complete: they are
under 1 kB, so a client that takes longer is broken or means harm."""

_BODY_SECONDS = 30.0
"""Seconds from the headers until the body is complete: the largest, 1 MiB, then needs 35 kB/s."""

_ANSWER_SECONDS = 120.0
"""Seconds that a client may leave an answer unread: the largest, 67 MB, then needs 0.6 MB/s."""

_IDLE_SECONDS = 10
"""Seconds until a connection without a request is closed. rld's client makes one for each request."""

_SHUTDOWN_SECONDS = 5
"""Seconds that SIGTERM leaves to requests which are complete; service managers kill after 10 (Docker) or more."""


class LimitedConnection(H11Protocol):
    """A connection that is closed when the client takes too long to send or to read, or when there are too many.

    The time is limited while the client has to send something: 408 is the answer where none was sent before. One
    connection too many gets 503 and is closed at once, so that those that are open stay usable.
    """

    _timer: asyncio.TimerHandle | None = None

    _unread_timer: asyncio.TimerHandle | None = None

    _timed_state: object = None
    """The client's state in HTTP that the timer was last set for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            self._close_with("503 Service Unavailable")
        else:
            self._limit_time()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._limit_time()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # of this request, or of one that came with it
            self._limit_time()

    def pause_writing(self) -> None:  # there is more of an answer than the client has read
        super().pause_writing()
        self._unread_timer = self.loop.call_later(_ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection; a request that is complete is answered before that, one that is half sent is not."""
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()
        else:
            super().shutdown()

    def _limit_time(self) -> None:
        """Start the timer of the part of a request that the client has to send, unless it runs."""
        state = self.conn.their_state
        if state is self._timed_state:
            return
        self._stop_timer()
        self._timed_state = state
        seconds = {h11.IDLE: _HEADER_SECONDS, h11.SEND_BODY: _BODY_SECONDS}.get(state)
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._close_with, "408 Request Timeout")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _close_with(self, status: str) -> None:
        """Close the connection, with an answer if the client waits for one; what it has not read is dropped."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = "Retry-After: 1\r\nContent-Length: 0\r\nConnection: close"
            self.transport.write(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode())
        self.transport.abort()


def max_connections() -> int:
    """Return how many connections may be open: at most half the files that the process may have open."""
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if max_files == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, max_files // 2)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; accepted connections send small packets at once.

    Without TCP_NODELAY the body of an answer waits for the client to acknowledge the headers, which takes 40 ms. Linux
    hands the option on from the listener; asyncio does not set it on sockets of `create_server`, whose protocol is 0.

    Raises:
        OSError: it can't listen there.
    """
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def limited_server(app: ASGIApp) -> uvicorn.Server:
    """Return an HTTP server whose connections and whose shutdown have limits."""
    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        log_level="warning",
        lifespan="on",
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)
