"""Programs in the sandbox: what passes, and what hostile programs can't do."""

from __future__ import annotations

import time
from typing import Any

import pytest
from rld.rewards.code import program_in, unit_tests

from rld.errors import RewardError
from rld.utils import sandbox
from rld.utils.sandbox import run_tests


@pytest.fixture(autouse=True)
def _sandbox() -> None:
    try:
        sandbox.require_sandbox()
    except RewardError as error:
        pytest.skip(f"no sandbox here: {error}")


def test_the_tests_decide() -> None:
    program = "def double(x):\n    return 2 * x"
    assert run_tests(program, "assert double(3) == 6").status == "passed"
    wrong = run_tests(program, "assert double(3) == 7")
    assert wrong.status == "failed" and "AssertionError" in wrong.output
    assert run_tests("def double(x)", "").status == "failed"


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import socket; socket.create_connection(('1.1.1.1', 53), timeout=2)",
        "import os\nfor path in ('/etc/passwd', '/root', '/home', '/work'):\n    assert os.path.exists(path)",
        "open('/usr/hostile', 'w')",
        "import os; assert os.environ.get('HOME')",
        "open('/tmp/large', 'wb').write(bytes(4 << 20))",
        "block = bytearray(900 << 20)",
        "raise SystemExit",
        "import os, signal; os.kill(1, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_what_a_program_must_not_do_fails(program: str) -> None:
    assert run_tests(program, "").status == "failed"


def test_limits_of_time_output_and_processes() -> None:
    start = time.monotonic()
    assert run_tests("while True: pass", "", seconds=1).status == "timeout"
    assert run_tests("import time; time.sleep(60)", "", seconds=1).status == "timeout"
    assert run_tests("import os\nwhile True: os.write(1, bytes(100_000))", "", seconds=5).status == "output"
    children = (
        "import os, time\nfor _ in range(200):\n    if os.fork() == 0:\n        time.sleep(30)\n        os._exit(0)"
    )
    many = run_tests(children, "", seconds=2)
    assert many.status == "failed" and "BlockingIOError" in many.output
    left = "import os, time\nif os.fork() == 0:\n    time.sleep(30)"
    assert run_tests(left, "", seconds=1).status in ("passed", "timeout")
    assert time.monotonic() - start < 20


def test_the_reward_reads_the_last_fenced_block() -> None:
    text = "First:\n```python\nx = 1\n```\nBetter:\n```\nx = 2\n```\nDone."
    assert program_in(text) == "x = 2\n"
    completions: list[Any] = [text, "x = 2", [{"role": "assistant", "content": "x = 3"}]]
    assert unit_tests(completions, [{"tests": "assert x == 2"}] * 3) == [1.0, 1.0, 0.0]
    assert unit_tests(["x = 2"], [None]) == [None]
