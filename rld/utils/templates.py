"""Templates of prompts: texts in which `{question}`, for one, stands for a row's question."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rld.utils.suggestions import nearest

ROLLOUT_FIELDS = ("feedback", "attempt", "correct_attempt")
"""What the template of a teacher's prompt may show of a rollout: what rewards say of a completion, the completion, and
another one of the same prompt that the verifier accepts."""

_PLACES = ("question", "answer", *ROLLOUT_FIELDS)
_BRACES = re.compile(r"\{(\w+)\}")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a template with a value in each place that is named; other braces, also those of values, are text."""
    return _BRACES.sub(lambda place: values.get(place[1], place[0]), template)


def has_answer(template: str) -> bool:
    """Whether a template shows the gold answer."""
    return "{answer}" in template


def rollout_fields(template: str | None) -> tuple[str, ...]:
    """Return which of `ROLLOUT_FIELDS` a template shows; none without a template."""
    return tuple(field for field in ROLLOUT_FIELDS if template is not None and f"{{{field}}}" in template)


def template_problem(template: str) -> str | None:
    """Return what is wrong with a template, None if nothing is. Other braces, as in `\\boxed{x}`, are text."""
    for word in _BRACES.findall(template):
        near = nearest(word, _PLACES)
        if word not in _PLACES and near is not None:
            return f"it has {{{word}}}; did you mean {{{near}}}?"
    return question_problem(template)


def question_problem(template: str) -> str | None:
    """Return what is wrong with a template that does not show the question, None if it does."""
    return None if "{question}" in template else "it should contain {question}, or every prompt is the same"
