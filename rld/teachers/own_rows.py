"""A row as a teacher reads it that has a prompt of its own, such as one with the gold answer.

This is the one place that makes such prompts. What a template shows of a rollout (`utils.templates.ROLLOUT_FIELDS`)
stands in the row under `ROLLOUT_TEXTS`, once there is a rollout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from rld.errors import DataError
from rld.types import ROLLOUT_TEXTS, STUDENT_PROMPT, Row, is_document
from rld.utils.templates import filled, has_answer, rollout_fields


def own_row(row: Row, template: str, texts: Mapping[str, str] | None = None) -> Row:
    """Return a row with a teacher's prompt; rewards still see the student's, which it has under `STUDENT_PROMPT`.

    A prompt that is a text becomes the filled template, and so does the last message of the user in a conversation,
    whose other messages stay. `{question}` is the row's column of that name, or else the text that is replaced.

    Args:
        row: The row.
        template: The template.
        texts: What stands for the fields of a rollout where there is none yet. None: what the row has of its rollout.

    Raises:
        DataError: the row is a document, or lacks what the template shows.
    """
    problem = missing(row, template)
    empty = empty_fields(row, template) if texts is None else []
    if problem is None and empty:
        problem = f"has no {{{empty[0]}}}, which only a rollout has"
    if problem is not None:
        raise DataError(f"it {problem}; its prompt is {str(row['prompt'])[:80]!r}")
    prompt, places = row["prompt"], row.get(ROLLOUT_TEXTS, {}) if texts is None else texts
    if isinstance(prompt, str):
        own_prompt: Any = _text(row, template, prompt, places)
    else:
        last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
        own_prompt = [dict(message) for message in prompt]
        own_prompt[last]["content"] = _text(row, template, own_prompt[last]["content"], places)
    return {**row, "prompt": own_prompt, STUDENT_PROMPT: prompt}


def missing(row: Row, template: str) -> str | None:
    """Return what keeps a row from a template before there is a rollout, as a clause without a subject; None: nothing.

    Columns of the row do not fill the fields of a rollout: of one with such a name that is said, because the user may
    mean the column.
    """
    if is_document(row):
        return "is a document, and has no prompt that a teacher's own could replace"
    answer = row.get("answer")
    if has_answer(template) and not (isinstance(answer, str) and answer):
        return "has no gold answer, which a teacher's prompt shows ({answer})"
    if not isinstance(row["prompt"], str) and all(message["role"] != "user" for message in row["prompt"]):
        return "has no message of the user, which a teacher's prompt would replace"
    fields = rollout_fields(template)
    columns = _columns(row) if fields else ()
    for field in fields:
        if field in columns:
            return f"has a column '{field}', and {{{field}}} of a teacher's prompt is the rollout's: rename the column"
    return None


def empty_fields(row: Row, template: str) -> list[str]:
    """Return which fields of a rollout a template shows that are empty or missing in a row."""
    texts = row.get(ROLLOUT_TEXTS, {})
    return [field for field in rollout_fields(template) if not texts.get(field)]


def _columns(row: Row) -> Set[str]:
    """Return the names of a row's columns, those in its `entry` too."""
    try:
        entry = json.loads(row.get("entry") or "{}")
    except (TypeError, ValueError):  # a script's rows may have any column of that name
        entry = {}
    return row.keys() | (entry.keys() if isinstance(entry, dict) else set())


def _text(row: Row, template: str, text: str, places: Mapping[str, str]) -> str:
    values = {"question": row.get("question") or text, "answer": row.get("answer") or ""}
    return filled(template, {**places, **values})
