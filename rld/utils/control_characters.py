"""Replaces characters that a terminal or a browser would obey, or that no encoding has, in text from elsewhere."""

from __future__ import annotations

import re

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, and those that turn the direction of the text that follows."""


def visible(text: str) -> str:
    r"""Return a text with its control characters as escapes, such as `\x1b`. Tabs and ends of lines stay."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def has_surrogate(text: str) -> bool:
    """Tell whether a text has half of a surrogate pair, which is no character and has no form in UTF-8.

    Python reads the bytes of a path that are not UTF-8 as such halves.
    """
    return any("\ud800" <= character <= "\udfff" for character in text)


def encodable(text: str) -> str:
    """Return a text with `?` for lone surrogates, which no tokenizer and no table of completions takes."""
    return text.encode("utf-8", "replace").decode()
