"""Programs in the sandbox: what passes, and what hostile programs can't do."""

from __future__ import annotations

import json
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
        "open('/dev/file', 'w')",
        "open('/file', 'w')",
        *(
            f"for i in range(40):\n    open(f'{folder}/{{i}}', 'wb').write(bytes(1 << 20))"
            for folder in ("/tmp", "/dev/shm")
        ),
        "import os; assert os.getuid() == 0 or os.setuid(0) is None",
        "block = bytearray(900 << 20)",
        "raise SystemExit",
        "import os, signal; os.kill(1, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_what_a_program_must_not_do_fails(program: str) -> None:
    assert run_tests(program, "").status == "failed"


def test_what_a_program_prints_is_no_mistake() -> None:
    program = "import atexit, sys\nprint('out')\nprint('err', file=sys.stderr)\natexit.register(print, 'end')"
    outcome = run_tests(program, "print('tested')")
    assert outcome.status == "passed" and sorted(outcome.output.split()) == ["err", "out", "tested"]


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
    assert program_in("So:\n```py\nx = 2\n") == "x = 2\n"  # it was stopped in front of the fence's end
    completions: list[Any] = [text, "x = 2", [{"role": "assistant", "content": "x = 3"}]]
    assert unit_tests(completions, ['{"tests": "assert x == 2"}'] * 3) == [1.0, 1.0, 0.0]


BEGINNING = 'from math import pi\n\n\ndef area(r):\n    """Return the area."""\n'
TASK = {
    "tests": "assert area(1) == one",
    "setup": "one = 3.141592653589793",
    "entry_point": "area",
    "prompt": BEGINNING,
}


@pytest.mark.parametrize(
    "completion",
    [
        "    return pi * r ** 2",
        "def area(r):\n    return pi * r ** 2",
        BEGINNING + "    return pi * r ** 2",
        "```python\ndef area(r):\n    return r * r * pi\n```\nTry it:\n```python\nprint(area(2))\n```",
        "```python\n    return pi * r ** 2\n```",
    ],
)
def test_a_completion_goes_on_where_the_prompt_ends_or_defines_the_function(completion: str) -> None:
    assert unit_tests([completion], [json.dumps(TASK)]) == [1.0]
    assert unit_tests(["x = 2"] * 2, ["", '{"id": 3}']) == [None, None]
