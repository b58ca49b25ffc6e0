"""Forms of a text for a comparison and in messages."""

from __future__ import annotations

import unicodedata

from rld.utils.control_characters import has_surrogate


def normal(text: str) -> str:
    """Return a text without the white space around it, with composed accents."""
    return unicodedata.normalize("NFC", text).strip()


def excerpt(text: str) -> str:
    """Return a text in quotes, of which the middle may be left out."""
    quoted = ascii(text) if has_surrogate(text) else repr(text)
    return quoted if len(quoted) <= 80 else f"{quoted[:40]}...{quoted[-40:]}"


def coding_problem(text: str, error: Exception) -> str:
    """Return the message about a text that can't be encoded, for which `error` was raised."""
    reason = "it has half of a surrogate pair, which is no character" if has_surrogate(text) else str(error)
    return f"{excerpt(text)} cannot be encoded: {reason}"
