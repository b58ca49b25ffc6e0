"""Keys of rows, by which what is known of them is remembered, and processes compare theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object

from rld.errors import DataError
from rld.types import Row


def row_keys(rows: Sequence[Row]) -> list[str]:
    """Return the key of each row, hexadecimal digits, equal for rows whose columns are all equal.

    That of a neighbour with the same objects, as in a group, is not computed again.
    """
    keys, before = list[str](), list[Any]()
    for row in rows:
        objects = [*row, *map(id, row.values())]
        keys.append(keys[-1] if keys and objects == before else _row_key(row))
        before = objects
    return keys


def require_equal_rows(place: str, rows: Sequence[Row]) -> None:
    """Refuse rows of a generator that differ between processes.

    Args:
        place: Where they are drawn, in the message.
        rows: Those of this process, drawn with the same random numbers as those of the others.

    Raises:
        DataError: they do, in every process.
    """
    if len(set(map(tuple, gather_object([row_keys(rows)])))) > 1:
        raise DataError(
            f"{place}: processes have drawn different rows with the same random numbers; a generator should take all "
            "of them from its rng, and go through no set of texts, whose order differs between processes: sort it, or "
            "set PYTHONHASHSEED=0 for all processes"
        )


def _row_key(row: Row) -> str:
    """Return a hash of a row, of which any column may tell the verifier what a correct answer is."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return what stands in JSON for a value that it has no form for: `repr` shortens arrays."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)
