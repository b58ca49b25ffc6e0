"""Templates of prompts: texts in which `{question}` and `{answer}` stand for a row's question and gold answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rld.utils.suggestions import nearest

_PLACES = ("question", "answer")
_PLACE = re.compile(r"\{(question|answer)\}")
_BRACES = re.compile(r"\{(\w+)\}")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its places filled; what a value spells is no place."""
    return _PLACE.sub(lambda place: values[place[1]], template)


def has_answer(template: str) -> bool:
    """Whether a template shows the gold answer."""
    return "{answer}" in template


def template_problem(template: str) -> str | None:
    """Return what is wrong with a template, None if nothing is. Other braces, as in `\\boxed{x}`, are text."""
    for word in _BRACES.findall(template):
        near = nearest(word, _PLACES)
        if word not in _PLACES and near is not None:
            return f"it has {{{word}}}; did you mean {{{near}}}?"
    if "{question}" not in template:
        return "it should contain {question}, or every prompt is the same"
    return None
