"""Run programs that a model wrote, without network, without the user's files, and within limits.

The programs run in bubblewrap (`bwrap`), as another user than root, with limits on time, memory, processes, files and
output. Linux alone has it. There is no fallback: where it cannot be used, the run is refused.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rld.errors import RewardError

MAX_OUTPUT = 64 * 1024
"""Bytes of output after which a program is stopped."""

_MAX_FILE = 1 << 20
"""Bytes of a file that a program writes."""

_MAX_TEMPORARY = 16 << 20
"""Bytes of all files in each of the two folders in memory where a program may write."""

_MAX_PROCESSES = 32
"""Processes and threads of a program, each with its own limit of memory."""

_NOBODY = "65534"

_HARNESS = """
import json, os, sys
def run():
    import builtins
    task = json.loads(sys.stdin.buffer.read())
    output, out = os.dup(1), os.write
    space = {"__name__": "answer"}
    for name in ("program", "tests"):
        exec(compile(task[name], name, "exec"), space)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    out(output, task["token"].encode())
    os._exit(0)
run()
"""
"""Runs a program and its tests in one name space; then writes a token that the program was not told, as the last thing.
"""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: `passed`: the program and all tests ran to their end. `failed`: one raised an exception or left early.
            `timeout`, `output`: it was stopped at the limit of time or output.
        output: The end of what it wrote, for messages.
    """

    status: Literal["passed", "failed", "timeout", "output"]
    output: str


def run_tests(program: str, tests: str, *, seconds: float = 5.0, memory_mb: int = 512) -> Outcome:
    """Run `program`, then `tests` in its name space, in a sandbox with Python's standard library.

    Leaving early, with `sys.exit(0)` or `os._exit(0)`, does not pass. A program that overrides what its tests compare,
    such as a class that equals everything, does, and so does one that looks for the harness's token in its memory: both
    run in one interpreter.

    Args:
        program: Python source.
        tests: Python source that raises an exception if the program is wrong.
        seconds: Limit of the run's time, and of the processor time of each process.
        memory_mb: Limit of each process's memory, in MiB.

    Raises:
        RewardError: there is no sandbox on this machine.
    """
    token = secrets.token_hex(16)
    task = json.dumps({"program": program, "tests": tests, "token": token}).encode()
    command = [*_sandbox(), *_limits(seconds, memory_mb), _interpreter(), "-I", "-S", "-B", "-c", _HARNESS]
    status, output = _run(command, task, seconds)
    passed = status == "ended" and output.endswith(token.encode())
    text = output.decode(errors="replace").removesuffix(token)[-2000:]
    if status == "ended":
        return Outcome("passed" if passed else "failed", text)
    return Outcome("timeout" if status == "timeout" else "output", text)


def require_sandbox() -> None:
    """Raise a `RewardError` that says what is missing if programs cannot be run in a sandbox here."""
    _interpreter()


def _run(command: Sequence[str], task: bytes, seconds: float) -> tuple[str, bytes]:
    """Run a command; return how it ended (`ended`, `timeout` or `output`) and its output."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + seconds + 1  # the sandbox needs some time to start
    output, pending, status = b"", memoryview(task), "ended"
    try:
        with selectors.DefaultSelector() as selector:
            for stream, event in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, selectors.EVENT_READ)):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, event)
            while process.stdout in {key.fileobj for key in selector.get_map().values()}:
                if time.monotonic() > deadline or len(output) > MAX_OUTPUT:
                    status = "output" if len(output) > MAX_OUTPUT else "timeout"
                    break
                for key, _ in selector.select(timeout=0.1):
                    if key.fileobj is process.stdin:
                        pending = _write(process.stdin.fileno(), pending)
                        if not pending:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                    else:
                        chunk = os.read(process.stdout.fileno(), 65536)
                        output += chunk
                        if not chunk:
                            selector.unregister(process.stdout)
    finally:
        _end(process)
    return status, output


def _write(descriptor: int, pending: memoryview) -> memoryview:
    """Write what the pipe takes; return the rest, which is empty if nobody reads any more."""
    try:
        return pending[os.write(descriptor, pending[:65536]) :]
    except BrokenPipeError:
        return pending[:0]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop all processes of the sandbox; bubblewrap's own end stops those inside it."""
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


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
    """Return the command that starts a sandbox.

    Raises:
        RewardError: a program that it needs is missing.
    """
    missing = [name for name in ("bwrap", "prlimit", "setpriv") if shutil.which(name) is None]
    if missing:
        raise RewardError(
            f"programs of a model run in a sandbox, which needs {' and '.join(missing)}: install the packages "
            "bubblewrap and util-linux (Debian, Ubuntu: apt install bubblewrap)"
        )
    command = []
    if os.getuid() == 0:  # the limit on processes does not bind root
        command = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs"]
        command += ["prlimit", f"--nproc={_MAX_PROCESSES}"]
    command += ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    command += ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]
    command += ["--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", "/dev/shm"):
        command += ["--size", str(_MAX_TEMPORARY), "--tmpfs", folder]
    for folder in ("/dev", "/"):  # in memory too, and of no size
        command += ["--remount-ro", folder]
    return [*command, "--chdir", "/tmp"]


@functools.cache
def _interpreter() -> str:
    """Return the path of a Python that starts in the sandbox, where only `/usr` is readable.

    Raises:
        RewardError: none starts, or there is no sandbox.
    """
    candidates = [os.path.realpath(sys.executable), "/usr/bin/python3"]
    message = b""
    for candidate in candidates:
        command = [*_sandbox(), *_limits(5, 512), candidate, "-I", "-S", "-B", "-c", "print('started')"]
        _, message = _run(command, b"", 10)
        if message.strip() == b"started":
            return candidate
    raise RewardError(
        f"programs of a model run in a sandbox, and none of {', '.join(candidates)} starts in it: "
        f"{message.decode(errors='replace').strip()[-200:]}. User namespaces may be switched off on this machine"
    )
