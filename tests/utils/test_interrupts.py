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
from rld.utils.interrupts import Finishing, StopRequest, StopRequested, Waiting, stop_on_signals
from tests.support.processes import free_port


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
    assert seconds_until_stopped(free_port()) < 5


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


def send_late(monkeypatch, seconds: float) -> threading.Event:
    """Have the signal that ends a wait sent some seconds after the wait was looked at; returns what is set then."""
    monkeypatch.setattr(interrupts, "_SECONDS_TO_WAIT", 0.1)
    is_looked_at, send = threading.Event(), signal.pthread_kill

    def late(thread: int, number: int) -> None:
        is_looked_at.set()
        time.sleep(seconds)
        send(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", late)
    return is_looked_at


def test_a_wait_that_ends_just_before_it_is_interrupted_costs_no_update(stop, monkeypatch):
    is_looked_at = send_late(monkeypatch, 0.2)
    with Finishing():
        with Waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_looked_at.wait(5)
        time.sleep(0.5)
    assert stop.signals == [signal.SIGTERM]
    with pytest.raises(StopRequested):  # a second request stops at once, as ever
        os.kill(os.getpid(), signal.SIGTERM)


def test_no_interruption_arrives_after_the_block(monkeypatch):
    is_looked_at, arrived = send_late(monkeypatch, 0.2), []
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.append("late"))
    try:
        with stop_on_signals(StopRequest("stopping")), Waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_looked_at.wait(5)
        time.sleep(0.4)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert arrived == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_nohup_is_respected_and_a_hangup_that_comes_twice_is_one_request():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals(StopRequest("stop")) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.is_made()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_on_signals(StopRequest("stop")) as stop:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signals == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)
