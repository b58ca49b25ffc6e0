"""A row as a teacher reads it that has a prompt of its own, such as one with the gold answer.

This is the one place that makes such prompts.
"""

from __future__ import annotations

from typing import Any

from rld.errors import DataError
from rld.types import STUDENT_PROMPT, Row, is_document
from rld.utils.templates import filled, has_answer


def own_row(row: Row, template: str) -> Row:
    """Return a row with a teacher's prompt; rewards still see the student's, which it has under `STUDENT_PROMPT`.

    A prompt that is a text becomes the filled template, and so does the last message of the user in a conversation,
    whose other messages stay. `{question}` is the row's column of that name, or else the text that is replaced.

    Raises:
        DataError: the row is a document, or has no gold answer and the template shows it.
    """
    problem = missing(row, template)
    if problem is not None:
        raise DataError(f"it {problem}; its prompt is {str(row['prompt'])[:80]!r}")
    prompt = row["prompt"]
    if isinstance(prompt, str):
        own_prompt: Any = _text(row, template, prompt)
    else:
        last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
        own_prompt = [dict(message) for message in prompt]
        own_prompt[last]["content"] = _text(row, template, own_prompt[last]["content"])
    return {**row, "prompt": own_prompt, STUDENT_PROMPT: prompt}


def missing(row: Row, template: str) -> str | None:
    """Return what a row lacks for a template, as a clause without a subject; None if nothing."""
    if is_document(row):
        return "is a document, and has no prompt that a teacher's own could replace"
    answer = row.get("answer")
    if has_answer(template) and not (isinstance(answer, str) and answer):
        return "has no gold answer, which a teacher's prompt shows ({answer})"
    if not isinstance(row["prompt"], str) and all(message["role"] != "user" for message in row["prompt"]):
        return "has no message of the user, which a teacher's prompt would replace"
    return None


def _text(row: Row, template: str, text: str) -> str:
    return filled(template, {"question": row.get("question") or text, "answer": row.get("answer") or ""})
