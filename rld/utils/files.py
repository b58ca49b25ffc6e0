"""Files that are written whole or not at all, and JSON Lines that survive a process killed at any moment.

A process that dies while it appends a line leaves at most one incomplete line at the end; readers leave that out.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

from rld.errors import CheckpointError


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` whole or not at all, whoever else writes it at the same time."""
    draft = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.draft")
    with draft.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote.

    Raises:
        CheckpointError: the file is missing.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}: it was not written to the end, or not by rld")
    value: dict[str, Any] = json.loads(path.read_text())
    return value


Record: TypeAlias = dict[str, Any]


def append_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Add `records` to the end of `path`; they are with the operating system when this returns."""
    with path.open("a") as file:
        file.write("".join(map(_line, records)))


def read_jsonl(path: Path) -> tuple[list[Record], bool]:
    """Read all records of `path`, none where the file is missing.

    Returns:
        The records, and whether a line was cut off at the end and left out.

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


def filter_jsonl(path: Path, wanted: Callable[[Record], bool]) -> None:
    """Drop the records that are not `wanted` and a line cut off; the file is replaced whole or not at all."""
    if not path.is_file():
        return
    text = "".join(_line(record) for record in read_jsonl(path)[0] if wanted(record))
    if text == path.read_text(errors="replace"):
        return
    draft = path.with_name(path.name + ".draft")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
