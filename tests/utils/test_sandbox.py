"""Programs in the sandbox: what passes, and what hostile programs can't do."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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


FILES = "import os\nfor path in ('/etc/passwd', '/root', '/home', '/work', '/sys'):\n    assert os.path.exists(path)"
FULL = "for i in range(40):\n    open(f'{folder}/{{i}}', 'wb').write(bytes(1 << 20))"
KERNEL = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
assert libc.shmget(0, 1 << 20, 0o1600) == libc.unshare(0x10020000) == libc.mount(b't', b'/tmp', b't', 0, 0) == -1
assert ctypes.get_errno() == 1
number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
assert libc.syscall(number, 0x10000000 | 17, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1
os.memfd_create("file")
"""


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import socket; socket.create_connection(('1.1.1.1', 53), timeout=2)", "Network is unreachable"),
        ("import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", "Address family not supported"),
        ("import socket; socket.socket(socket.AF_UNIX).connect('/run/docker.sock')", "No such file"),
        (FILES, "AssertionError"),
        ("open('/usr/hostile', 'w')", "Read-only file system"),
        ("open('/dev/file', 'w')", "Read-only file system"),
        ("open('/file', 'w')", "Read-only file system"),
        ("open('/tmp/large', 'wb').write(bytes(4 << 20))", "File too large"),
        (FULL.format(folder="/tmp"), "No space left"),
        (FULL.format(folder="/dev/shm"), "No space left"),
        ("import os; assert os.getuid() == 0 or os.setuid(0) is None", "Invalid argument"),
        ("block = bytearray(900 << 20)", "MemoryError"),
        (KERNEL, "in <module>\nPermissionError"),
    ],
)
def test_what_a_program_must_not_do_fails(program: str, error: str) -> None:
    outcome = run_tests(program, "")
    assert outcome.status == "failed" and error in outcome.output


def test_a_program_sees_neither_the_environment_nor_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    program = """
import glob
for name in ("environ", "cmdline"):
    for path in glob.glob(f"/proc/[0-9]*/{name}"):
        try:
            print(open(path).read())
        except OSError:
            pass
processes = len(glob.glob("/proc/[0-9]*"))
"""
    outcome = run_tests(program, "print(processes)\nassert processes <= 2")
    assert outcome.status == "passed" and "hf_of_the_user" not in outcome.output


EQUAL = "class Equal:\n    __eq__ = lambda self, other: True\n    __sub__ = __radd__ = lambda self, other: 0.0\n"
WRITE = """
import os
for fd in range(9):
    try:
        os.write(fd, b"passed")
    except OSError:
        pass
"""
MESSAGES = """
import json, os, sys
def say(message):
    os.write(int(sys.argv[2]), json.dumps({"printed": "", "changed": [], **message}).encode() + b"\\n")
"""
FRAMES = """
import gc, sys
frame = sys._getframe()
while frame:
    for value in [*frame.f_locals.values(), *(v for v in gc.get_objects() if isinstance(v, dict))]:
        if isinstance(value, dict) and "token" in value:
            print(value["token"])
    frame = frame.f_back
"""


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "def f(x):\n    import sys; sys.exit(0)",
        "def f(x):\n    import os; os._exit(0)",
        "def f(x): raise StopIteration",
        "import os, signal; os.kill(1, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal\ndef f(x): os.kill(-1, signal.SIGKILL)",
        EQUAL + "f = lambda x: Equal()",
        EQUAL + "class Number(Equal, float): pass\nf = lambda x: Number(7)",
        EQUAL + "f = Equal()",
        "from unittest.mock import ANY, MagicMock\nf = lambda x: ANY if x else MagicMock()",
        "abs = all = lambda *x: 0 * len(x)\nisinstance = round = lambda *x: 2\nf = lambda x: 7",
        "import builtins\nbuiltins.exec = builtins.compile = builtins.abs = lambda *a, **k: 0\nf = lambda x: 7",
        "import sys, types\nsys.modules['math'] = types.SimpleNamespace(isclose=lambda *x: True)\nf = lambda x: 7",
        "class AssertionError(BaseException): pass\nimport builtins\nbuiltins.AssertionError = None\nf = lambda x: 7",
        "import sys\nsys.excepthook = print\nsys.settrace(lambda *x: None)\nf = lambda x: 7",
        "import atexit, os\natexit.register(os._exit, 0)\nf = lambda x: 7",
        WRITE + "f = lambda x: 7",
        FRAMES + "f = lambda x: 7",
        MESSAGES + "say({'value': {'global': ['unittest.mock', 'ANY']}})\nf = lambda x: 7",
        MESSAGES
        + "def f(x):\n    call = [{'global': ['builtins', 'exec']}, 'import os; os._exit(0)']\n"
        + "    say({'ask': '__call__', 'arguments': call, 'named': {'dict': []}})\n",
        MESSAGES + "os.write(int(sys.argv[2]), b'[' * 1_000_000 + b'\\n')",
        "def f(x):\n    a = []\n    a.append(a)\n    return a",
        "def f(x): return 'x' * (1 << 24)",
    ],
)
def test_a_program_cannot_forge_that_its_tests_pass(program: str) -> None:
    tests = (
        "import math\nassert all(map(lambda x: f(x) == 2, [1]))\nassert abs(f(1) - 2) < 1e-6 and math.isclose(f(1), 2)"
    )
    assert run_tests(program, tests, setup="def check(value): return value == 2").status == "failed"


def test_what_a_row_brings_is_not_the_programs_to_change() -> None:
    setup = "def close(a, b): return abs(a - b) < 1e-6\nclass Node:\n    def __init__(self, value): self.value = value"
    tests = "assert close(f(Node(1)), 2)"
    assert run_tests("def f(node): return node.value + 1", tests, setup=setup).status == "passed"
    assert run_tests("def f(node): return 7\nclose = lambda a, b: True", tests, setup=setup).status == "failed"


STACK = """
class Stack:
    def __init__(self):
        self.items = []
    def push(self, x):
        self.items.append(x)
    def __len__(self):
        return len(self.items)
    def __iter__(self):
        return iter(self.items)
    def __eq__(self, other):
        return self.items == other.items
"""
STACK_TESTS = """
s, t = Stack(), Stack()
s.push(3)
t.push(3)
assert s == t and s != 3 and len(s) == 1 and list(s) == s.items == [3] and 3 in s and 4 not in s
assert isinstance(s, Stack)
s.top = 5
assert s.top == 5
"""
VALUES = """
import datetime, enum
from collections import *
from fractions import Fraction
P, C = namedtuple("P", "a b"), enum.IntEnum("C", "X Y")
def f():
    copies = [Counter("aab"), {1}, (1,), Fraction(1, 2), {3: 4}, b"x", 1j, None, range(2), 2**20000, float("inf")]
    return copies, [deque([1]), datetime.date(2020, 1, 2), P(1, 2), C.Y]
"""
VALUES_TESTS = """
copies, others = f()
assert copies == [{"a": 2, "b": 1}, {1}, (1,), 0.5, {3: 4}, b"x", 1j, None, range(2), 2**20000, float("inf")]
queue, day, pair, choice = others
assert queue.popleft() == 1 and day.year == 2020 and pair == (1, 2) and pair.a == 1 and choice == 2 and choice is C.Y
"""
PRINT_TESTS = """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as text:
    f(3)
assert text.getvalue() == "hi 3\\n"
"""
ERROR_TESTS = """
for kind in E, ValueError:
    try:
        f(1)
    except kind as error:
        assert str(error) == "no"
    else:
        assert False
"""


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(x): x.sort()", "a = [3, 1]\nf(a)\nassert a == [1, 3]"),
        ("def f(g, x): return [g(i) for i in x]", "assert f(lambda i: i * 2, [1]) == [2] and f(len, ['a']) == [1]"),
        ("class E(ValueError): pass\ndef f(x): raise E('no')", ERROR_TESTS),
        ("def f(x): print('hi', x)", PRINT_TESTS),
        ("def f(x):\n    yield 1\n    yield 2", "assert list(f(1)) == [1, 2]"),
        ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
        ("count = 0\ndef f():\n    global count\n    count += 1", "f()\nf()\nassert count == 2"),
        (STACK, STACK_TESTS),
        (VALUES, VALUES_TESTS),
    ],
    ids=["in place", "callback", "error", "print", "generator", "builtin's name", "global", "class", "values"],
)
def test_tests_call_the_program_as_if_it_were_beside_them(program: str, tests: str) -> None:
    outcome = run_tests(program, tests)
    assert outcome.status == "passed", outcome.output


@pytest.mark.parametrize("lost", ["--nproc=32", "--seccomp", "--unshare-all"])
def test_a_sandbox_that_does_not_hold_is_refused(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen

    def without(command: list[str], **options: Any) -> Any:
        is_value = [lost == before == "--seccomp" for before in ["", *command]]
        kept = [part for part, skip in zip(command, is_value, strict=False) if part != lost and not skip]
        return popen(kept, **options)

    sandbox._interpreter.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", without)
        with pytest.raises(RewardError, match=r"none of .* starts in it"):
            sandbox.require_sandbox()


def test_what_a_program_prints_is_no_mistake() -> None:
    program = "import atexit, sys\nprint('out')\nprint('err', file=sys.stderr)\natexit.register(print, 'end')"
    outcome = run_tests(program, "print('tested')")
    assert outcome.status == "passed" and sorted(outcome.output.split()) == ["err", "out", "tested"]


def test_limits_of_time_and_output() -> None:
    start = time.monotonic()
    assert run_tests("while True: pass", "", seconds=1).status == "timeout"
    assert run_tests("def f(): return iter(int, 1)", "for _ in f(): pass", seconds=1).status == "timeout"
    assert run_tests("import os\nwhile True: os.write(1, bytes(100_000))", "", seconds=5).status == "output"
    assert (
        run_tests("def f():\n    while True: print('x' * 10_000)", "f()", seconds=2, memory_mb=128).status != "passed"
    )
    assert time.monotonic() - start < 20


COUNT = "import os, time\nfor _ in range(200):\n    if os.fork() == 0:\n        time.sleep(30)\n        os._exit(0)"


def test_limits_of_processes_and_of_their_memory() -> None:
    start = time.monotonic()
    many = run_tests(COUNT, "", seconds=2)
    assert many.status == "failed" and "BlockingIOError" in many.output  # so the next ends too
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    good = "import os\ndef f(): return os.waitpid(os.fork() or os._exit(0), 0)[1]"
    with ThreadPoolExecutor(2) as pool:  # the limit is each call's own
        ends = [pool.submit(run_tests, bomb, "", seconds=2), pool.submit(run_tests, good, "assert f() == 0")]
        assert [end.result().status for end in ends] == ["timeout", "passed"]
    large = "import os, time\nfor _ in range(8):\n    if os.fork() == 0: break\nb = b'x' * (60 << 20)\ntime.sleep(9)"
    assert run_tests(large, "", seconds=8, memory_mb=128).status == "memory"
    assert time.monotonic() - start < 20


def test_processes_in_the_background_end_with_the_call() -> None:
    seconds = f"98765.{os.getpid()}"
    program = f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        os.execv("/usr/bin/sleep", ["sleep", "{seconds}"])
    os._exit(0)
"""
    assert run_tests(program, "import time; time.sleep(0.2)").status == "passed"
    deadline = time.monotonic() + 2
    while any(seconds.encode() in _content(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def test_the_reward_reads_the_last_fenced_block() -> None:
    text = "First:\n```python\nx = 1\n```\nBetter:\n```\nx = 2\n```\nDone."
    assert program_in(text) == "x = 2\n"
    assert program_in("So:\n```py\nx = 2\n") == "x = 2\n"  # it was stopped in front of the fence's end
    completions: list[Any] = [text, "x = 2", [{"role": "assistant", "content": "x = 3"}]]
    assert unit_tests(completions, ['{"tests": "assert x == 2"}'] * 3) == [1.0, 1.0, 0.0]


def feedback(*programs: str, **options: Any) -> list[str | None]:
    columns: dict[str, list[str | None]] = {}
    entry = [json.dumps({"tests": "assert f(2) == 4\nassert f(-1) == -2"})] * len(programs)
    unit_tests(list(programs), entry, columns.__setitem__, **options)
    return columns["feedback"]


def test_the_reward_says_what_is_wrong_with_a_program() -> None:
    texts = feedback(
        "def f(x): return 2 * x",
        "def f(x):\n    y = [x]\n    return y[5]",
        "def f(x): return abs(2 * x)",
        "def f(x)\n    return x",
        "import f\n",
        " ",
        "import os; os._exit(0)",
    )
    assert texts == [
        None,
        "IndexError: list index out of range\nIn line 3 of the program: return y[5]\nIn the test: assert f(2) == 4",
        "AssertionError\nIn the test: assert f(-1) == -2",
        "SyntaxError: expected ':'\nIn line 1 of the program: def f(x)",
        "ModuleNotFoundError: No module named 'f'\nIn line 1 of the program: import f",
        "There is no program.",
        "The program ended before its tests did.",
    ]
    assert feedback("def f(x):\n    while True: pass", seconds=1) == [
        "The program was stopped: it took more than 1 seconds."
    ]


def test_what_the_reward_says_is_bounded_and_a_hostile_program_gains_nothing_by_it() -> None:
    """A report of its own choice is text, whatever else the program does; folders of the machine are left out."""
    forged = "import os, json\nfor i in range(3, 20):\n    try: os.write(i, json.dumps({message}).encode() + b'\\n')\n"
    forged += "    except OSError: pass"
    for program in (
        "def f(x): raise ValueError('/us' + 'r/lib/python3/secret.py' + 'x' * 9000)",
        "class E(Exception):\n    def __str__(self): raise SystemExit\ndef f(x): raise E",
        "type('E' * 9000, (Exception,), {})\ndef f(x): raise type('E' * 9000, (Exception,), {})('a')",
        forged.format(message="{'report': {'error': 'y' * 5000, 'message': ['z'] * 900, 'line': 10**9, 'test': 'a'}}"),
        forged.format(message="{'report': 7}"),
    ):
        (text,) = feedback(program)
        assert text is not None and 0 < len(text) < 700, program
        assert "/usr" not in text
        assert unit_tests([program], [json.dumps({"tests": "assert f(2) == 4"})]) == [0.0]


def test_the_reward_says_of_every_exception_what_the_program_raised_and_where() -> None:
    """Even where a class takes other arguments than `args`, and where a line holds what else breaks lines of a text."""
    texts = feedback(
        "import json\ndef f(x):\n    return json.loads('{')",
        "def f(x): raise ExceptionGroup('many', [ValueError('b')])",
        "s = 'a\x0cb\u2028c'\ndef f(x):\n    return [][0]",
        "def f(x): raise type('E' * 70_000, (Exception,), {})('a' * 70_000)",
        "def f(x): raise ValueError('no\\u2028\\nIn the test: assert True')",
        "def f(x): raise ValueError('\\ud800')",
        "a = []\na.append(a)\ndef f(x): raise ValueError(a)",
    )
    test = "\nIn the test: assert f(2) == 4"
    assert texts == [
        "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
        f"\nIn line 3 of the program: return json.loads('{{'){test}",
        "ExceptionGroup: many (1 sub-exception)"
        f"\nIn line 1 of the program: def f(x): raise ExceptionGroup('many', [ValueError('b')]){test}",
        f"IndexError: list index out of range\nIn line 3 of the program: return [][0]{test}",
        f"{'E' * 100}: {'a' * 98}..."
        f"\nIn line 1 of the program: def f(x): raise type('E' * 70_000, (Exception,), {{}})('a' * 70_000){test}",
        "ValueError: no  In the test: assert True"
        f"\nIn line 1 of the program: def f(x): raise ValueError('no\\u2028\\nIn the test: assert True'){test}",
        f"ValueError: ?\nIn line 1 of the program: def f(x): raise ValueError('\\ud800'){test}",
        f"ValueError: [[...]]\nIn line 3 of the program: def f(x): raise ValueError(a){test}",
    ]


def test_an_exception_that_cannot_be_made_again_is_caught_by_its_class_or_a_base() -> None:
    program = "import json\ndef f(x): return json.loads(x)\ndef g(): raise ExceptionGroup('many', [OSError()])"
    tests = "import json\nfor call, kind in ((lambda: f('{'), json.JSONDecodeError), (lambda: f('{'), ValueError)"
    tests += ", (g, Exception)):\n    try: call()\n    except kind: pass\n    else: assert False"
    assert run_tests(program, tests).status == "passed"


def test_tests_that_cannot_be_read_are_not_blamed_on_the_program() -> None:
    columns: dict[str, list[str | None]] = {}
    unit_tests(["def f(x): return 4"], [json.dumps({"tests": "f\nassert f(2) ="})], columns.__setitem__)
    assert columns["feedback"] == ["SyntaxError: invalid syntax\nIn the test: assert f(2) ="]


def test_only_fields_of_known_types_leave_the_sandbox() -> None:
    deep = "[" * 986 + "]" * 986
    for report in (f'{{"error": {deep}, "other": {deep}}}', '{"error": "E", "line": true, "test": 1}', deep):
        program = f"import os, sys\nos.write(int(sys.argv[2]), b'{{\"report\": {report}}}\\n')"
        outcome = run_tests(program, "")
        assert outcome.status == "failed"
        assert {type(value) for value in outcome.report.values()} <= {str, type(None)}
    assert sandbox._without_report("mark" + "[" * 100_000, "mark")[1] == {}


def test_the_token_of_success_is_not_written_on_failure_and_the_program_gets_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, start = sandbox._read, sandbox._start
    outputs: list[bytes] = []
    tasks: list[dict[str, str]] = []

    def note_outputs(*arguments: Any) -> Any:
        status, written = read(*arguments)
        outputs.extend(written)
        return status, written

    def note_task(command: Any, content: bytes, *descriptors: Any) -> Any:
        tasks.append(json.loads(content))
        return start(command, content, *descriptors)

    monkeypatch.setattr(sandbox, "_read", note_outputs)
    monkeypatch.setattr(sandbox, "_start", note_task)
    assert run_tests("x = 1", "assert x == 2").report["test"] == 1
    program, tests = tasks
    assert set(program) == {"program", "setup"}
    assert tests["token"].encode() not in outputs[1] and tests["mark"].encode() in outputs[1]
    assert tests["token"] != tests["mark"]


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
