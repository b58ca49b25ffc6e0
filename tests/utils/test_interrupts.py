"""A request to stop ends a wait for a server, and lets one that answers go on."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from rld.teachers.http_client import HttpClient
from rld.utils import interrupts
from rld.utils.interrupts import StopRequest, StopRequested, Waiting, stop_on_signals


@pytest.fixture
def stop():
    with stop_on_signals(StopRequest("stopping")) as request:
        yield request
    signal.setitimer(signal.ITIMER_REAL, 0)


def soon(seconds: float = 0.3) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


def seconds_until_stopped(port: int) -> float:
    client = HttpClient(f"http://127.0.0.1:{port}", "t", timeout_seconds=60.0, token_variable="X")
    soon()
    start = time.monotonic()
    with pytest.raises(StopRequested):
        client.call("GET", client.url + "/health")
    return time.monotonic() - start


def test_a_server_that_is_away_does_not_keep_a_run_from_stopping(stop):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert seconds_until_stopped(port) < 5


def test_a_server_that_is_silent_does_not_keep_a_run_from_stopping(stop, monkeypatch):
    monkeypatch.setattr(interrupts, "_SECONDS_TO_WAIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert seconds_until_stopped(silent.getsockname()[1]) < 5


def test_a_wait_that_ends_is_not_interrupted(stop, monkeypatch):
    monkeypatch.setattr(interrupts, "_SECONDS_TO_WAIT", 0.2)
    with Waiting():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.4)
    assert stop.is_made()
