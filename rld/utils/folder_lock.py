"""An exclusive lock on a folder that a command writes to, held for as long as the process lives."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rld.errors import CheckpointError, UsageError
from rld.utils.files import read_json, write_json
from rld.utils.secrets import masked_override

_LOCK = "run.lock"
_HOLDER = "run.lock.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside the block; a folder that this creates and that stays empty is removed.

    The operating system releases the lock of a process that was killed.

    Raises:
        UsageError: another process holds the lock, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        advice = "wait until it has ended, stop it, or choose another --output"
        raise UsageError(f"{folder} is in use by {_holder(folder)}; {advice}") from error
    try:
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        command = shlex.join(["rld", *map(masked_override, sys.argv[1:])])
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "command": command}
        write_json(folder / _HOLDER, holder)
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        if os.name == "posix":  # while it is held: a process that has just opened it notices, and opens a new one
            (folder / _LOCK).unlink(missing_ok=True)
        lock.release()
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _holder(folder: Path) -> str:
    """Return a description of the process that holds a folder's lock."""
    try:
        holder = read_json(folder / _HOLDER)
    except CheckpointError:  # it has the lock, and has not yet written who it is
        return "another process"
    pid, host, started, command = (holder.get(key) for key in ("pid", "host", "started", "command"))
    return f"process {pid} on {host}, started {started} ({command})"
