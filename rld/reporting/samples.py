"""The table of held-out prompts with the answers of student and teachers, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rld.reporting.chart_groups import Colours
from rld.reporting.history import AnswerRecord, SampleRecord
from rld.reporting.html import scrolling, table

_LONGEST = 400
"""Characters of a text that the page shows; the file has all of it."""


def samples_table(samples: Sequence[SampleRecord], colours: Colours) -> str:
    """Return the table as HTML; empty without samples."""
    if not samples:
        return ""
    teachers = list(dict.fromkeys(name for sample in samples for name in sample.teachers))
    heads = [("skill", "left"), ("prompt", "left text"), ("gold answer", "left text"), ("student before", "left text")]
    heads += [("student after", "left text")]
    heads += [
        (f'<span class="{colours.css("teacher", name)}"><i></i>{escape(name)}</span>', "left text") for name in teachers
    ]
    rows = []
    for sample in samples:
        answers = [sample.before, sample.after, *(sample.teachers.get(name) for name in teachers)]
        rows.append([escape(sample.skill), _text(sample.question), _text(sample.gold), *map(_answer, answers)])
    return scrolling(table(heads, rows), is_long=True)


def _answer(answer: AnswerRecord | None) -> str:
    if answer is None:
        return "-"
    verdict, mark = ("correct", "✓") if answer.is_correct else ("wrong", "✗")
    return f'<span class="{verdict}" title="{verdict}">{mark}</span> {_text(answer.answer)}'


def _text(text: str) -> str:
    if not text.strip():
        return "<small>(empty)</small>"
    return escape(text if len(text) <= _LONGEST else text[:_LONGEST] + " …")
