"""Processes of a test: what they get, and that none outlives the failure of another for long."""

from __future__ import annotations

import os
import sys
import time

import pytest

from tests.support.processes import FORK_SERVER, exit_codes


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_failure_ends_the_processes_that_wait_for_the_one_that_failed(has_ended):
    started = [FORK_SERVER.Process(target=time.sleep, args=(400,)), FORK_SERVER.Process(target=sys.exit, args=(3,))]
    for process in started:
        process.start()
    if has_ended:
        started[1].join()
    begin = time.monotonic()
    assert exit_codes(started, 400.0, after_failure=0.5) == [None, 3]
    assert time.monotonic() - begin < 200
    assert not any(process.is_alive() for process in started)


def check_environment(expected: dict[str, str]) -> None:
    sys.exit(0 if dict(os.environ) == expected else 1)


@pytest.mark.parametrize("value", ["of one test", "of the next"])
def test_a_process_has_the_environment_of_the_test_that_starts_it(monkeypatch, value):
    monkeypatch.setenv(f"SET_BY_{len(value)}", value)
    process = FORK_SERVER.Process(target=check_environment, args=(dict(os.environ),))
    process.start()
    assert exit_codes([process], 60.0) == [0]
