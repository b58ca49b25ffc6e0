"""Suggestions in error messages for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_LISTED = 12

_LONGEST = 80
"""Characters of a name in a list of all: that of a file's column may be as long as a book."""

WORDS_OF_BOOLEANS = frozenset({"true", "false", "on", "off", "yes", "no", "y", "n"})
"""Texts, in small letters, by which a user means a boolean; Python and Jinja take all of them for true."""


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name in `names` that `word` most likely misspells, or None when none is close."""
    by_plain_name = {_plain(name): name for name in names}
    matches = difflib.get_close_matches(_plain(word), by_plain_name, n=1, cutoff=0.6)
    return by_plain_name[matches[0]] if matches else None


def hint(word: str, names: Iterable[str]) -> str:
    """Return a suggestion for an unknown name: the nearest name, or all names if they are few, or "".

    >>> hint("studnet", ["student", "teacher"])
    "; did you mean 'student'?"
    """
    names = list(names)
    near = nearest(word, names)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; choose from {', '.join(name[:_LONGEST] for name in names)}" if 0 < len(names) <= _MOST_LISTED else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
