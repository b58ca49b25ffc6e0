"""Reads JSON files that hold an array of objects; a file that holds no array is read as JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rld.data.formats import jsonl
from rld.data.formats.json_values import DECODER


def read(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of each object's last line, and the object.

    Raises:
        ValueError: the file is not valid JSON from some line on.
    """
    if not _holds_array(path):
        yield from jsonl.read(path)
        return
    text = path.read_text(encoding="utf-8-sig")
    yield from _elements(text, _behind_space(text, text.index("[") + 1))


def _holds_array(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as file:
        character = file.read(1)
        while character.isspace():
            character = file.read(1)
    return character == "["


def _elements(text: str, position: int) -> Iterator[tuple[int, Any]]:
    """Yield the last line and the value of each element of an array, of which the first one stands at a position."""
    line, num_read = 1, 0
    is_open = text[position : position + 1] != "]"
    while is_open:
        first_line = line + text.count("\n", num_read, position)
        try:
            value, position = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deep" if isinstance(error, RecursionError) else error
            raise ValueError(f"the row that begins on line {first_line} is not valid JSON: {reason}") from error
        line, num_read = line + text.count("\n", num_read, position), position
        yield line, value
        position = _behind_space(text, position)
        if text[position : position + 1] not in (",", "]"):
            raise ValueError(f"a comma or ] is missing behind the row that ends on line {line}")
        is_open = text[position] == ","
        position = _behind_space(text, position + 1) if is_open else position
    if text[position + 1 :].strip():
        raise ValueError("something stands behind the end of the array")


def _behind_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
