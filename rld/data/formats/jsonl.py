"""Reads JSON Lines files: one object per line; empty lines are skipped. Numbers with a fraction are read as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each line's number and its value, or a ValueError that says why the line is not valid JSON."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _value(line)


def _value(line: str) -> Any:
    try:
        return json.loads(line, parse_constant=_refuse, parse_float=_as_written, object_pairs_hook=_without_repetition)
    except ValueError as error:  # also a number with thousands of digits
        return ValueError(f"not valid JSON: {error}")
    except RecursionError:
        return ValueError("not valid JSON: it is nested too deep")


def _refuse(constant: str) -> None:
    """Refuse NaN, Infinity and -Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{constant} is no JSON number")


def _as_written(number: str) -> str:
    """Return a number with a fraction or an exponent as text: 3.10 is no 3.1, nor 1e3 a 1000.0."""
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is read as inf")
    return number


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is set twice, of which Python takes the last."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is set twice")
    return record
