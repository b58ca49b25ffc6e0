"""Files of one JSON object a line that survive a process killed at any moment.

Dying while it writes, a process leaves at most one line cut off at the end; whoever reads the file leaves that out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

from rld.errors import CheckpointError

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
"""A run's journals, in its folder."""

Record: TypeAlias = dict[str, Any]


def append(path: Path, records: Iterable[Record]) -> None:
    """Add `records` to the end of `path`; they are with the operating system when this returns."""
    with path.open("a") as file:
        file.write("".join(map(_line, records)))


def read(path: Path) -> tuple[list[Record], bool]:
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


def keep(path: Path, wanted: Callable[[Record], bool]) -> None:
    """Drop the records that are not `wanted` and a line cut off; the file is replaced whole or not at all."""
    if not path.is_file():
        return
    text = "".join(_line(record) for record in read(path)[0] if wanted(record))
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
