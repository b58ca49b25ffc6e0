"""Readers of row files by format. To add a format, write a module with a function `read` and add it to `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from rld.data.formats import csv, jsonl

Read: TypeAlias = Callable[[Path], Iterator[tuple[int, Any]]]
"""Yields the number of each row's last line, and the row as a mapping, or a ValueError that describes its defect.

Raises OSError or ValueError if the file as a whole cannot be read."""

FORMATS: dict[str, Read] = {".jsonl": jsonl.read, ".csv": csv.read}
"""The reader of each file name suffix."""
