"""Short lists of what may be many, for messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def first_few(things: Iterable[object], most: int) -> str:
    """Return the first things, separated by commas, and "..." if there are more than `most`.

    >>> first_few(range(5), 3)
    '0, 1, 2, ...'
    """
    texts = list(map(str, things))
    return ", ".join(texts if len(texts) <= most else [*texts[:most], "..."])


def first_and_number(texts: Sequence[str]) -> str:
    """Return the first text, and how many others there are.

    >>> first_and_number(["a.csv:2", "a.csv:7", "a.csv:9"])
    'a.csv:2 and 2 others'
    """
    return texts[0] + (f" and {len(texts) - 1} others" if len(texts) > 1 else "")
