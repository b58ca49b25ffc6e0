"""Reads JSON Lines files: one object per line; empty lines are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rld.data.formats.json_values import DECODER


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each line's number and its value, or a ValueError that says why the line is not valid JSON."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _value(line)


def _value(line: str) -> Any:
    try:
        return DECODER.decode(line)
    except ValueError as error:  # also a number with thousands of digits
        return ValueError(f"not valid JSON: {error}")
    except RecursionError:
        return ValueError("not valid JSON: it is nested too deep")
