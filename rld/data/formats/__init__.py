"""Formats of files with rows. To add one, write a module here with a `read`, and name it in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from rld.data.formats import csv, jsonl

Read: TypeAlias = Callable[[Path], Iterator[tuple[int, Any]]]
"""Yields the number of each row's last line, and the row as a mapping, or the ValueError that says what is wrong.

It raises OSError or ValueError where the file as a whole cannot be read."""

FORMATS: dict[str, Read] = {".jsonl": jsonl.read, ".csv": csv.read}
"""By the end of the file's name."""
