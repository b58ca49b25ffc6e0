"""A user's code neither ends the process nor runs for ever."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time

import pytest

from rld.utils.interrupts import StopRequest
from rld.utils.user_calls import UserCodeStopped, description, user_code


def stopped(function, seconds=5.0):
    with pytest.raises(UserCodeStopped) as error, user_code(seconds):
        function()
    return description(error.value)


def leave():
    sys.exit(0)


def interrupt():
    raise KeyboardInterrupt


def spin():
    while True:
        pass


def spin_without_mercy():
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            spin()
    spin()


def backtrack():
    re.match(r"(a+)+$", "a" * 64 + "b")


def test_code_that_ends_the_process_is_told():
    assert re.fullmatch(rf"called sys.exit\(0\) \({__file__}:\d+\)", stopped(leave))
    assert stopped(interrupt).startswith("raised KeyboardInterrupt (")


@pytest.mark.parametrize(
    "function", [spin, backtrack, lambda: time.sleep(60), threading.Event().wait, spin_without_mercy]
)
def test_code_that_does_not_return_is_interrupted(function):
    start = time.monotonic()
    assert stopped(function, 0.2).startswith("did not return within 0.2 seconds (")
    assert time.monotonic() - start < 5
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_errors_and_requests_to_stop_are_raised_as_they_are():
    with pytest.raises(ZeroDivisionError), user_code(5.0):
        raise ZeroDivisionError
    request = StopRequest("")
    request.signals.append(2)
    with pytest.raises(KeyboardInterrupt), user_code(5.0):
        request(2, None)


def test_an_alarm_that_was_set_before_still_comes():
    alarms = []
    before = signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with user_code(5.0):
            time.sleep(0.3)
        assert alarms
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with user_code(5.0):
            pass
        time.sleep(0.3)
        assert len(alarms) == 2
    finally:
        signal.signal(signal.SIGALRM, before)


def test_outside_the_main_thread_there_is_no_limit():
    results = []

    def call():
        with user_code(0.01):
            time.sleep(0.1)
            results.append(1)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert results == [1]
