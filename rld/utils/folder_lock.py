"""An exclusive lock on a folder that a command writes to, held for as long as the process lives.

The operating system holds the lock and releases it when the process dies, however it dies, so no number of a process
decides who holds it. Not every file system shares its locks between machines; so the holder also writes, every few
seconds, into a file beside the lock that it still lives. A process that gets the lock and finds the file of another
machine watches it before it takes over. A holder that was suspended, and finds that it was taken over, ends at once and
leaves the folder to the other one.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rld.errors import CheckpointError, UsageError
from rld.utils.control_characters import has_surrogate
from rld.utils.files import Record, read_json, require_target, write_json
from rld.utils.messages import tell
from rld.utils.secrets import masked_override

_LOCK = "run.lock"
_HOLDER = "run.lock.json"

_SECONDS_PER_SIGN = 5.0
"""How often a holder writes that it lives."""

_SECONDS_TO_WATCH = 15.0
"""How long the file of a holder on another machine has to stay as it is before its lock is taken over."""

_SECONDS_ALIVE = 60.0
"""A holder whose last sign is older is taken for dead by those who only read."""

_ADVICE = "wait until it has ended, stop it, or choose another --output"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside the block; a folder that this creates and that stays empty is removed.

    Raises:
        UsageError: another process holds the lock, the folder is a file, a link on its path leads nowhere, or its path
            is not in UTF-8.
    """
    for path in (folder, *folder.parents):
        require_target(path)
    place = str(folder.resolve())
    if has_surrogate(place):
        raise UsageError(f"{place!a} is not in UTF-8, and what writes models takes no other names; give another folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise _in_use(folder, _holder(folder)) from error
    try:
        is_watched = _wait_for_end(folder)
        holding = _Holding(folder)
        try:
            holding.begin(is_watched)
            with holding:
                yield
        finally:
            holding.remove()
    finally:
        lock.release()
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


class _Holding:
    """Writes who holds a folder's lock, again and again inside the block.

    If another process has taken the lock over, because this one was suspended, this one ends without another word in
    the folder, not even a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        started = time.strftime("%Y-%m-%d %H:%M:%S %z")
        command = shlex.join(["rld", *map(masked_override, sys.argv[1:])])
        self._folder, self._has_ended = folder, threading.Event()
        self._record: Record = {
            "id": uuid.uuid4().int,  # a number, in which no secret is masked
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "machine": _machine(),
            "started": started,
            "command": command,
        }
        self._thread = threading.Thread(target=self._write_again, daemon=True)

    def begin(self, is_watched: bool) -> None:
        """Write the first record.

        Args:
            is_watched: Whether the holder before was watched, by others perhaps as well. They write at about the same
                time, and the last one holds the lock.

        Raises:
            UsageError: that is another one.
        """
        self._write(0)
        if is_watched:
            time.sleep(_SECONDS_PER_SIGN)
            if self.is_lost():
                raise _in_use(self._folder, _holder(self._folder))

    def is_lost(self) -> bool:
        """Return whether the record is another process's."""
        holder = _holder(self._folder)
        return bool(holder and holder.get("id") != self._record["id"])

    def remove(self) -> None:
        """Remove the record and the lock's file, unless they are another process's."""
        if self.is_lost():
            return
        (self._folder / _HOLDER).unlink(missing_ok=True)
        if os.name == "posix":  # while it is held: a process that has just opened it notices, and opens a new one
            (self._folder / _LOCK).unlink(missing_ok=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def _write(self, sign: int) -> None:
        write_json(self._folder / _HOLDER, self._record | {"sign": sign})

    def _write_again(self) -> None:
        sign = 0
        while not self._has_ended.wait(_SECONDS_PER_SIGN):
            sign += 1
            try:
                if self.is_lost():
                    self._end_process()
                self._write(sign)  # also where it is missing or damaged
            except OSError:  # the folder is gone, or the disk is full: others tell of it
                continue

    def _end_process(self) -> None:
        try:
            tell(f"{_description(_holder(self._folder))} has taken over {self._folder}, so this process ends here")
            sys.stdout.flush()
        finally:  # also where nobody reads what it prints
            os._exit(UsageError.exit_code)  # as where it finds the folder in use


def _wait_for_end(folder: Path) -> bool:
    """Tell of the holder that died without a word; of one on another machine, make sure that it did.

    Returns:
        Whether that took a while, because no lock of the operating system tells.

    Raises:
        UsageError: it lives.
    """
    holder = _holder(folder)
    if holder is None:
        return False
    is_watched = holder.get("machine") != _machine()
    if is_watched:
        tell(f"waiting {_SECONDS_TO_WATCH:g} s for a sign of life from {_description(holder)}")
        deadline = time.monotonic() + _SECONDS_TO_WATCH
        while time.monotonic() < deadline:
            time.sleep(_SECONDS_PER_SIGN / 10)
            now = _holder(folder)
            if now is None:
                return True
            if now != holder:
                raise _in_use(folder, now)
    tell(f"{folder} was in use by {_description(holder)}, which has ended without a word; its lock is taken over")
    return is_watched


def _in_use(folder: Path, holder: Record | None) -> UsageError:
    return UsageError(f"{folder} is in use by {_description(holder)}; {_ADVICE}")


def _machine() -> str:
    """Return a name of this machine since it was started, which no other one has; else its host name."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else socket.gethostname()


def gives_signs_of_life(folder: Path) -> bool:
    """Tell whether the holder of a folder's lock wrote within the last minute that it lives."""
    try:
        return time.time() - (folder / _HOLDER).stat().st_mtime < _SECONDS_ALIVE
    except OSError:  # there is none, or it cannot be seen
        return False


def _holder(folder: Path) -> Record | None:
    """Return what the holder of a folder's lock wrote of itself, nothing where that is damaged; None: it wrote none."""
    try:
        return read_json(folder / _HOLDER)
    except FileNotFoundError:
        return None
    except CheckpointError:
        return {} if (folder / _HOLDER).exists() else None


def _description(holder: Record | None) -> str:
    """Return a description of the process that holds a folder's lock."""
    if not holder:
        return "another process"
    pid, host, started, command = (holder.get(key) for key in ("pid", "host", "started", "command"))
    return f"process {pid} on {host}, started {started} ({command})"
