"""Run programs that a model wrote, without network, without the user's files, and within limits.

The programs run in bubblewrap (`bwrap`), as another user than root, with limits on time, memory, processes, files and
output. Linux alone has it. There is no fallback: where it cannot be used, the run is refused.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rld.errors import RewardError
from rld.utils import sandbox_peer, sandbox_sides, system_calls

MAX_OUTPUT = 64 * 1024
"""Bytes of output after which a program is stopped."""

_MAX_FILE = 1 << 20
"""Bytes of a file that a program writes."""

_MAX_TEMPORARY = 16 << 20
"""Bytes of all files in each of the two folders in memory where a program may write."""

_MAX_PROCESSES = 32
"""Processes and threads of a program, each with its own limit of memory."""

_USERS = range(61184, 65520)
"""Users to run as where rld runs as root, one drawn for each process: the system counts processes by user."""

_OWN_IMPORTS = re.compile(r"^from (?:__future__|rld\.\S+) import .*\n", re.MULTILINE)

_SIDES = "from __future__ import annotations\n" + "".join(
    _OWN_IMPORTS.sub("", Path(str(module.__file__)).read_text()) for module in (sandbox_peer, sandbox_sides)
)
"""The source of what runs in the sandbox, as one file: there is no package."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: `passed`: the program and all tests ran to their end. `failed`: one raised an exception or left early.
            `timeout`, `output`, `memory`: it was stopped at that limit.
        output: The end of what it wrote, for messages.
        report: Of a failed one: the class (`error`) and the `message` of the first exception, and the numbers of the
            `line` of the program and of the `test` in the source of the tests, each where there is one. The program
            decides what it says. Empty where the program ended in another way.
    """

    status: Literal["passed", "failed", "timeout", "output", "memory"]
    output: str
    report: Mapping[str, Any] = field(default_factory=dict)


def run_tests(
    program: str,
    tests: str,
    *,
    setup: str = "",
    entry_point: str = "",
    seconds: float = 5.0,
    memory_mb: int = 512,
) -> Outcome:
    """Run `program` in a sandbox, and `tests` in another, from which they call the program (`sandbox_sides.py`).

    The program can't read its tests, and none of what it prints, overrides, raises or kills makes them pass: they
    decide by the plain values that it returns. What they ask an object of the program itself, such as by its methods,
    that object answers.

    Args:
        program: Python source.
        tests: Python source that raises an exception if the program is wrong.
        setup: Python source that runs before each of both. Its functions and values, other than classes, are the tests'
            own.
        entry_point: A name that the tests take from the program, even if it is a builtin's.
        seconds: Limit of the run's time, and of the processor time of each process.
        memory_mb: Limit of the memory of each process, and of all together, in MiB.

    Raises:
        RewardError: there is no sandbox on this machine.
    """
    token, mark = secrets.token_hex(16), secrets.token_hex(16)
    command = [*_sandbox(), *_limits(seconds, memory_mb), _interpreter(), "-I", "-S", "-B", "-c", _SIDES]
    with contextlib.ExitStack() as stack:
        sides = []
        channels = [os.pipe(), os.pipe()]
        tasks = {"program": program, "setup": setup}, {"tests": tests, "setup": setup, "entry_point": entry_point}
        try:
            for task, ends in zip(tasks, ((0, 1), (1, 0)), strict=True):
                source, sink = channels[ends[0]][0], channels[ends[1]][1]
                content = json.dumps({**task, "token": token, "mark": mark} if "tests" in task else task)
                process = _start([*command, str(source), str(sink)], content.encode(), (source, sink))
                stack.callback(_end, process)
                sides.append(process)
        finally:
            for descriptor in (*channels[0], *channels[1]):
                os.close(descriptor)
        status, outputs = _read(sides, seconds, memory_mb)
    has_passed = status == "ended" and outputs[-1].endswith(token.encode())
    text, report = _without_report(b"".join(outputs).decode(errors="replace").replace(token, ""), mark)
    if status == "ended":
        return Outcome("passed" if has_passed else "failed", text[-2000:], {} if has_passed else report)
    return Outcome(status, text[-2000:])


def _without_report(text: str, mark: str) -> tuple[str, dict[str, Any]]:
    """Return what the processes wrote without the mark and the report behind it, and the report."""
    before, _, after = text.partition(mark)
    with contextlib.suppress(ValueError, RecursionError):  # there is none, or it is cut off
        report, end = json.JSONDecoder().raw_decode(after)
        return before + after[end:], report if isinstance(report, dict) else {}
    return before + after, {}


def require_sandbox() -> None:
    """Raise a `RewardError` that says what is missing if programs cannot be run in a sandbox here."""
    _interpreter()


def _start(command: Sequence[str], content: bytes, descriptors: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a command in the sandbox that reads `content` and may use `descriptors`."""
    with _memory_file(content) as task, _memory_file(system_calls.program()) as rules:
        return subprocess.Popen(
            [*_other_user(), "bwrap", "--seccomp", str(rules), *command],
            stdin=task,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(rules, *descriptors),
            env={"PATH": os.environ.get("PATH", os.defpath)},  # /proc/1/environ shows it to the program
            start_new_session=True,
        )


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """Yield a descriptor from which a process reads `content`."""
    descriptor = os.memfd_create("rld")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(
    processes: Sequence[subprocess.Popen[bytes]], seconds: float, memory_mb: int
) -> tuple[Literal["ended", "timeout", "output", "memory"], list[bytes]]:
    """Read what processes write until the last of them has ended or a limit is reached."""
    deadline = time.monotonic() + seconds + 1  # the sandbox needs some time to start
    streams = [process.stdout for process in processes if process.stdout is not None]
    outputs = [b""] * len(streams)
    with selectors.DefaultSelector() as selector:
        for i, stream in enumerate(streams):
            selector.register(stream, selectors.EVENT_READ, i)
        while True:
            for key, _ in selector.select(timeout=0.05):
                chunk = os.read(key.fd, 65536)
                outputs[key.data] += chunk
                if not chunk and key.data == len(streams) - 1:
                    return "ended", outputs
                if not chunk:
                    selector.unregister(key.fileobj)
            if sum(map(len, outputs)) > MAX_OUTPUT:
                return "output", outputs
            if time.monotonic() > deadline:
                return "timeout", outputs
            if any(_memory(process.pid) > memory_mb << 20 for process in processes):
                return "memory", outputs


def _memory(pid: int) -> int:
    """Return the bytes of memory that a process and all that it has started hold, without files."""
    pages, waiting = 0, [str(pid)]
    while waiting:
        process = f"/proc/{waiting.pop()}"
        with contextlib.suppress(OSError):  # it has ended
            status = Path(process, "status").read_text()
            pages += sum(int(size) for size in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", status, re.MULTILINE))
            for task in os.listdir(f"{process}/task"):
                waiting += Path(process, "task", task, "children").read_text().split()
    return pages << 10


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop all processes of the sandbox; bubblewrap's own end stops those inside it."""
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _limits(seconds: float, memory_mb: int) -> list[str]:
    """Return the command that limits a process inside the sandbox."""
    return [
        "prlimit",
        f"--as={memory_mb << 20}",
        f"--cpu={int(seconds) + 1}",
        f"--nproc={_MAX_PROCESSES}",
        f"--fsize={_MAX_FILE}",
        "--nofile=64",
        "--core=0",
    ]


@functools.cache
def _sandbox() -> list[str]:
    """Return the arguments of bubblewrap.

    Raises:
        RewardError: a program that it needs is missing.
    """
    missing = [name for name in ("bwrap", "prlimit", "setpriv") if shutil.which(name) is None]
    if missing:
        raise RewardError(
            f"programs of a model run in a sandbox, which needs {' and '.join(missing)}: install the packages "
            "bubblewrap and util-linux (Debian, Ubuntu: apt install bubblewrap)"
        )
    command = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    command += ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]
    command += ["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--size", str(_MAX_TEMPORARY), "--tmpfs", folder]
    for folder in ("/dev", "/"):  # in memory too, and of no size
        command += ["--remount-ro", folder]
    return [*command, "--chdir", "/tmp"]


def _other_user() -> list[str]:
    """Return the command that runs another as a user other than root, whom the limit on processes does not bind."""
    if os.getuid() != 0:
        return []
    user = secrets.choice(_USERS)
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
    return [*command, "prlimit", f"--nproc={_MAX_PROCESSES}"]


_PROBE = """
import json, os, resource, socket, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert os.getuid() != 0 and set(os.environ) <= {"PWD", "LC_CTYPE"}
assert status["Seccomp"].strip() == "2" and not int(status["CapEff"], 16)
for name, most in json.loads(sys.argv[1]).items():
    assert 0 < resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] <= most, f"no limit {name}"
assert [name for _, name in socket.if_nameindex()] == ["lo"]
print("started")
"""
"""Looks whether the sandbox is what it should be."""


@functools.cache
def _interpreter() -> str:
    """Return the path of a Python that starts in the sandbox, where only `/usr` is readable.

    Raises:
        RewardError: none starts, or there is no sandbox.
    """
    candidates = [os.path.realpath(sys.executable), "/usr/bin/python3"]
    message, limits = b"", json.dumps({"AS": 512 << 20, "CPU": 6, "NPROC": _MAX_PROCESSES, "FSIZE": _MAX_FILE})
    for candidate in candidates:
        process = _start([*_sandbox(), *_limits(5, 512), candidate, "-I", "-S", "-B", "-c", _PROBE, limits], b"")
        try:
            _, (message,) = _read([process], 10, 512)
        finally:
            _end(process)
        if message.strip() == b"started":
            return candidate
    raise RewardError(
        f"programs of a model run in a sandbox, and none of {', '.join(candidates)} starts in it: "
        f"{message.decode(errors='replace').strip()[-200:]}. User namespaces may be switched off on this machine"
    )
