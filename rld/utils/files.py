"""Atomic file writes, folders replaced only when complete, and JSON Lines that stay readable after a killed write.

A process that is killed while it appends a line leaves at most one incomplete last line, which readers skip.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from rld.errors import CheckpointError, UsageError
from rld.utils.messages import one_line
from rld.utils.secrets import masked_strings, masked_text

_SECONDS_PER_DAY = 24 * 60 * 60

Record: TypeAlias = dict[str, Any]


def user_path(text: str) -> Path:
    """Return a path that a user wrote; a shell leaves the tilde of `--output=~/run` as it is."""
    return Path(os.path.expanduser(text))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically, even when other threads or processes write the same file.

    Raises:
        OSError: the file cannot be written; the draft file is removed.
    """
    draft = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.draft")
    try:
        with _naming(path), draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an error of the operating system that names no file, as those of writing, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically, with secrets masked; lone surrogates become escapes."""
    write_bytes(path, masked_text(text).encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON, atomically, with secrets masked."""
    write_bytes(path, json.dumps(masked_strings(value), indent=1, allow_nan=False).encode())


def read_json(path: Path) -> Record:
    """Return an object that `write_json` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}: it was not written to the end, or not by rld")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, or not in UTF-8
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return value


def remove_drafts(folder: Path, *, is_shared: bool = False) -> None:
    """Remove the drafts of files and folders that processes which were killed have left in a folder.

    Args:
        is_shared: Whether other processes may write into the folder now. Then a draft stays for a day if its process
            lives, or was on another machine.
    """
    for path in folder.glob("*.draft"):
        if is_shared and not _is_abandoned(path):
            continue
        _remove_draft(path)


def _remove_draft(draft: Path) -> None:
    """Remove what is where a draft is to be; of a link the link alone, for no draft is one."""
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)


def _is_abandoned(draft: Path) -> bool:
    """Tell whether the process that wrote a draft is dead, as far as that can be told."""
    writer = re.search(r"\.([^/]+)-([0-9]+)-[0-9]+\.draft$", draft.name)
    if writer is not None and writer[1].endswith(socket.gethostname()):
        import psutil  # deferred, because this is the only use of it in what `rld check` imports

        return not psutil.pid_exists(int(writer[2]))
    try:
        return time.time() - draft.stat().st_mtime > _SECONDS_PER_DAY
    except FileNotFoundError:  # it has just been finished
        return False


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `folder` when the block ends without an error.

    Where `folder` is a link, the folder that it leads to is replaced, on its disk, and the link stays.
    """
    folder = folder.resolve()
    draft = folder.with_name(f"{folder.name}.draft")
    _remove_draft(draft)
    draft.mkdir(parents=True)
    yield draft
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)


def require_target(path: Path) -> None:
    """Check that a path, if it is a link, leads somewhere.

    Raises:
        UsageError: it does not.
    """
    if path.is_symlink() and not path.exists():
        fix = "mount that disk, or remove the link"
        raise UsageError(f"{path} is a link to {path.readlink()}, which is not there; {fix}")


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there; of a link, also the folder that it leads to."""
    shutil.rmtree(folder.resolve(), ignore_errors=True)
    if folder.is_symlink():
        folder.unlink()


def move_folder(folder: Path, to: Path) -> None:
    """Move a folder to another place on its disk, which is free; a link still leads to where it led."""
    if folder.is_symlink():
        to.symlink_to(folder.resolve(), target_is_directory=True)
        folder.unlink()
    else:
        folder.rename(to)


def append_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Append `records` with secrets masked; they have been passed to the operating system when this returns."""
    with _naming(path), path.open("a") as file:
        file.write("".join(map(_line, records)))


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write `records`, one a line, atomically, with secrets masked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(map(_line, records)))


class JsonLines(NamedTuple):
    """What a file of JSON Lines holds: its records, and the numbers of the lines that are no JSON object."""

    records: list[Record]
    damaged: list[int]


def read_jsonl(path: Path) -> JsonLines:
    """Return what a file of JSON Lines holds, nothing if it is missing."""
    records, damaged = [], []
    text = path.read_text(errors="replace") if path.is_file() else ""
    for number, line in enumerate(text.split("\n")[: None if text and text[-1] != "\n" else -1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged.append(number)
    return JsonLines(records, damaged)


def filter_jsonl(path: Path, is_wanted: Callable[[Record], bool]) -> list[int]:
    """Remove the records for which `is_wanted` is false, and damaged lines; replace the file atomically.

    Returns:
        The numbers of the damaged lines.
    """
    if not path.is_file():
        return []
    lines = read_jsonl(path)
    text = "".join(_line(record) for record in lines.records if is_wanted(record))
    if text.encode() != path.read_bytes():
        write_text(path, text)
    return list(lines.damaged)


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value that was read from JSON is a finite number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _line(record: Record) -> str:
    return json.dumps(masked_strings(record), allow_nan=False) + "\n"
