"""An exclusive lock on a folder that a command writes to, held for as long as the process lives.

The operating system holds the lock and releases it when the process dies, however it dies, so no number of a process
decides who holds it. Not every file system shares its locks between machines; so the holder also writes, every few
seconds, into a file beside the lock that it still lives. A process that gets the lock and finds the file of another
machine watches it before it takes over.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rld.errors import CheckpointError, UsageError
from rld.utils.files import Record, read_json, write_json
from rld.utils.messages import tell
from rld.utils.secrets import masked_override

_LOCK = "run.lock"
_HOLDER = "run.lock.json"

_SECONDS_PER_SIGN = 5.0
"""How often a holder writes that it lives."""

_SECONDS_TO_WATCH = 15.0
"""How long the file of a holder on another machine has to stay as it is before its lock is taken over."""

_ADVICE = "wait until it has ended, stop it, or choose another --output"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside the block; a folder that this creates and that stays empty is removed.

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
        raise UsageError(f"{folder} is in use by {_description(_holder(folder))}; {_ADVICE}") from error
    is_held = False
    try:
        _take_over(folder)
        is_held = True
        with _SignsOfLife(folder):
            yield
    finally:
        if is_held:
            (folder / _HOLDER).unlink(missing_ok=True)
            if os.name == "posix":  # while it is held: a process that has just opened it notices, and opens a new one
                (folder / _LOCK).unlink(missing_ok=True)
        lock.release()
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class _SignsOfLife:
    """Writes who holds a folder's lock, again and again inside the block.

    If another process has taken the lock over, because this one was suspended, this one is requested to stop.
    """

    def __init__(self, folder: Path) -> None:
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        command = shlex.join(["rld", *map(masked_override, sys.argv[1:])])
        self._path, self._has_ended = folder / _HOLDER, threading.Event()
        self._record: Record = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "machine": _machine(),
            "started": started,
            "command": command,
        }
        self._thread = threading.Thread(target=self._write_again, daemon=True)

    def __enter__(self) -> None:
        self._write(0)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def _write(self, sign: int) -> None:
        write_json(self._path, self._record | {"sign": sign})

    def _write_again(self) -> None:
        sign = 0
        while not self._has_ended.wait(_SECONDS_PER_SIGN):
            sign += 1
            try:
                record = read_json(self._path)
                if {**record, "sign": 0} != {**self._record, "sign": 0}:
                    tell(f"{_description(record)} has taken over {self._path.parent}, so this process stops")
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self._write(sign)
            except (OSError, CheckpointError):  # the folder is gone, or the disk is full: others tell of it
                continue


def _take_over(folder: Path) -> None:
    """Tell of the holder that died without a word; of one on another machine, make sure that it did.

    Raises:
        UsageError: it lives.
    """
    if not (folder / _HOLDER).is_file():
        return
    holder = _holder(folder)
    if holder.get("machine", _machine()) != _machine():
        tell(f"waiting {_SECONDS_TO_WATCH:g} s for a sign of life from {_description(holder)}")
        deadline = time.monotonic() + _SECONDS_TO_WATCH
        while time.monotonic() < deadline:
            time.sleep(_SECONDS_PER_SIGN / 10)
            if _holder(folder) != holder:
                raise UsageError(f"{folder} is in use by {_description(holder)}; {_ADVICE}")
    tell(f"{folder} was in use by {_description(holder)}, which has ended without a word; its lock is taken over")


def _machine() -> str:
    """Return a name of this machine since it was started, which no other one has; else its host name."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else socket.gethostname()


def _holder(folder: Path) -> Record:
    """Return what the holder of a folder's lock wrote of itself, nothing if it has not yet, or the file is damaged."""
    try:
        return read_json(folder / _HOLDER)
    except CheckpointError:
        return {}


def _description(holder: Record) -> str:
    """Return a description of the process that holds a folder's lock."""
    if not holder:
        return "another process"
    pid, host, started, command = (holder.get(key) for key in ("pid", "host", "started", "command"))
    return f"process {pid} on {host}, started {started} ({command})"
