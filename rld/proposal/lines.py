"""Lines of a recipe: a key, its value in YAML, and the reason as a comment."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from rld.utils.control_characters import visible
from rld.utils.messages import one_line

_LINE = 120
"""Characters."""

_BARE = re.compile(r"(\.{0,2}/)*[A-Za-z][\w./-]*(:\w+)?")
_OTHER_VALUES = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
"""Words that YAML reads as no text, in one of its versions."""


def entry(indent: int, key: str, value: Any, why: str = "") -> list[str]:
    """Return a key of a recipe with its value and, behind it or above it, the reason."""
    line = f"{' ' * indent}{key}: {flow(value)}"
    reason = one_line(visible(why))
    if not reason or len(f"{line}  # {reason}") <= _LINE:
        return [f"{line}  # {reason}" if reason else line]
    head = f"{' ' * indent}# "
    # Paths stay whole.
    wrapper = textwrap.TextWrapper(_LINE, head, head, break_long_words=False, break_on_hyphens=False)
    return [*wrapper.wrap(reason), line]


def two_digits(number: float) -> str:
    """Return a number for a comment: two digits, or all those of a larger whole number."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def flow(value: Any) -> str:
    """Return a value in YAML, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quoted(str(key))}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def quoted(text: str) -> str:
    """Return a text in YAML, bare where no version of YAML takes it for something else."""
    return text if _BARE.fullmatch(text) and text.lower() not in _OTHER_VALUES else json.dumps(text, ensure_ascii=False)
