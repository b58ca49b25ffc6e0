"""Suggestions in error messages: what a user meant by a name that does not exist, and where their code raised."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable


def describe_exception(error: Exception) -> str:
    """Return what a user's code raised, and where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


_MOST_LISTED = 12


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` that `word` most likely misspells, or None when none is close."""
    plain = {_plain(name): name for name in known}
    near = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    return plain[near[0]] if near else None


def hint(word: str, known: Iterable[str]) -> str:
    """Return how to go on after a wrong name: the nearest one, or all of them where they are few, or nothing.

    >>> hint("studnet", ["student", "teacher"])
    "; did you mean 'student'?"
    """
    known = list(known)
    near = nearest(word, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; choose from {', '.join(known)}" if 0 < len(known) <= _MOST_LISTED else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
