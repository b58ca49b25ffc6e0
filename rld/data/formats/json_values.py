"""JSON as files of rows have it: numbers with a fraction are read as text, and what Python alone reads is refused."""

from __future__ import annotations

import json
import math
from typing import Any


def _refuse(constant: str) -> None:
    """Refuse NaN, Infinity and -Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{constant} is no JSON number")


def _as_written(number: str) -> str:
    """Return a number with a fraction or an exponent as text: 3.10 is no 3.1, nor 1e3 a 1000.0."""
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is read as inf")
    return number


def whole_number(number: str) -> int:
    """Return a whole number; one with more digits than Python converts is refused in words of rld's."""
    try:
        return int(number)
    except ValueError as error:
        raise ValueError(f"a number has {len(number.lstrip('-')):,} digits; write it as text, in quotes") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is set twice, of which Python takes the last."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is set twice")
    return record


DECODER = json.JSONDecoder(
    parse_constant=_refuse,
    parse_float=_as_written,
    parse_int=whole_number,
    object_pairs_hook=_without_repetition,
    strict=True,
)
