"""Atomic file writes, folders replaced only when complete, and JSON Lines that stay readable after a killed write.

A process that is killed while it appends a line leaves at most one incomplete last line, which readers skip.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from rld.errors import CheckpointError

Record: TypeAlias = dict[str, Any]


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically, even when other threads or processes write the same file.

    Raises:
        OSError: the file cannot be written; the draft file is removed.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False))


def read_json(path: Path) -> Record:
    """Return an object that `write_json` wrote.

    Raises:
        CheckpointError: the file is missing.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}: it was not written to the end, or not by rld")
    value: Record = json.loads(path.read_text())
    return value


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `folder` when the block ends without an error."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)


def append_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Append `records` to `path`; they have been passed to the operating system when this returns."""
    with path.open("a") as file:
        file.write("".join(map(_line, records)))


def read_jsonl(path: Path) -> tuple[list[Record], bool]:
    """Return all records of `path`, or none if the file is missing.

    Returns:
        The records, and whether the last line was incomplete and skipped.

    Raises:
        CheckpointError: another line is not a JSON object; names the file and the line.
    """
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise CheckpointError(f"{path}:{number} is not a JSON object; take the line out, or start the run anew")
    return records, len(records) < len(lines)


def filter_jsonl(path: Path, is_wanted: Callable[[Record], bool]) -> None:
    """Remove the records for which `is_wanted` is false, and an incomplete last line; replace the file atomically."""
    if not path.is_file():
        return
    text = "".join(_line(record) for record in read_jsonl(path)[0] if is_wanted(record))
    if text != path.read_text(errors="replace"):
        write_text(path, text)


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
