"""Files and folders that are written whole or not at all, and JSON Lines that survive a process killed at any moment.

A process that dies while it appends a line leaves at most one incomplete line at the end; readers leave that out.
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
    """Write `data` to `path` whole or not at all, even when other threads or processes write the same file.

    Raises:
        OSError: the file cannot be written; no draft is left behind.
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
    """Write `text` to `path` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False))


def read_json(path: Path) -> Record:
    """Read an object that `write_json` wrote.

    Raises:
        CheckpointError: the file is missing.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}: it was not written to the end, or not by rld")
    value: Record = json.loads(path.read_text())
    return value


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the place of `folder` when the block ends without an error."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(draft, folder)


def append_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Add `records` to the end of `path`; the operating system has them when this returns."""
    with path.open("a") as file:
        file.write("".join(map(_line, records)))


def read_jsonl(path: Path) -> tuple[list[Record], bool]:
    """Read all records of `path`, none where the file is missing.

    Returns:
        The records, and whether the last line was incomplete and left out.

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
    """Remove the records that are not wanted, and an incomplete last line; the file is replaced whole or not at all."""
    if not path.is_file():
        return
    text = "".join(_line(record) for record in read_jsonl(path)[0] if is_wanted(record))
    if text != path.read_text(errors="replace"):
        write_text(path, text)


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
