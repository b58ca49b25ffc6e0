"""Which kind of rows a file has, and in which columns their values stand: by the names of columns, then by values."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rld.data.row_kinds import RowReader
from rld.errors import RecipeError
from rld.proposal.survey import Column, Survey

_LABELS = (
    *("label_text", "label_name", "label", "labels", "class", "category", "sentiment", "topic", "intent", "tag"),
    *("emotion", "section", "genre"),
)
_ANSWERS = ("answer", "completion", "output", "response", "target", "summary", "solution", "translation", "reply")
_QUESTIONS = (
    *("question", "prompt", "instruction", "input", "query", "problem", "title", "headline", "subject", "text"),
    *("sentence", "sentence1", "sentence2", "premise", "hypothesis", "review", "article", "document", "content"),
    *("body", "description", "message", "comment", "tweet", "context", "source"),
)
_DOCUMENTS = ("text", "content", "document", "body", "article", "code")

_LONGEST_LABEL = 60
"""Characters."""

_NUMBER = re.compile(r"[-+]?\d[\d.,]*")

Why = dict[str, str]
"""Of each key of a skill, why its value stands there."""


@dataclass(frozen=True)
class Kind:
    """The kind of rows, and what a skill says of them.

    Attributes:
        name: A name in `ROW_KINDS`.
        columns: As of a skill.
        labels: As of a skill.
        why: Of each of these, and of `kind`, why it was chosen.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    why: Why = field(default_factory=dict)

    @property
    def reader(self) -> RowReader:
        """What makes items of its rows."""
        options: dict[str, dict[str, Any]] = {
            "labelled": {"labels": self.labels},
            "conversation": {"turns": "all"},
            "plain_text": {"document_separator": None},
        }
        return RowReader(self.name, self.columns, options.get(self.name, {}))


def recognise(rows: Survey, held_out: Survey | None) -> Kind:
    """Return the kind of a source's rows and their columns.

    Args:
        rows: The rows to train on.
        held_out: Rows of their own for scores, which may have further labels.

    Raises:
        RecipeError: it cannot be told which column is the question or the answer, or rows have a kind for which no
            recipe is written.
    """
    if rows.is_text:
        return Kind("plain_text", why={"kind": "the files are texts: every token is learnt"})
    names = {_plain(name): name for name in reversed(rows.columns)}
    if {"prompt", "tests"} <= names.keys():
        fix = "begin with a copy of the recipe for them: rld copy code"
        raise RecipeError(f"{rows.source}: the columns prompt and tests are those of programming tasks; {fix}")
    talks = next((column for column in rows.columns.values() if 2 * column.num_messages > rows.num_rows), None)
    if talks is not None:
        why = f"{_column_text(talks.name)} has chat messages; each answer in them is learnt"
        is_prompt = talks.name == "prompt" or talks.name == "completion"
        columns = {} if is_prompt or talks.name == "messages" else {"messages": talks.name}
        return Kind("conversation", columns, why={"kind": why, "columns": "the column with the messages"})
    texts = [name for name, column in rows.columns.items() if 2 * column.num_texts > rows.num_rows]
    answer = _first(names, (*_ANSWERS, *_LABELS), rows.columns)
    if answer is None:
        return _without_answer(rows, names, texts)
    questions = [name for name in texts if _plain(name) in _QUESTIONS and name != answer]
    others = [name for name in texts if name != answer]
    if not questions and len(others) != 1:
        fix = "name the column of the question `question`"
        raise RecipeError(
            f"{rows.source}: the answer is in {answer!r}, but no column has the question{_has(rows)}; {fix}"
        )
    return _answered(rows, held_out, questions or others, answer)


def _without_answer(rows: Survey, names: Mapping[str, str], texts: Sequence[str]) -> Kind:
    """Return the kind of rows of which no column has a name of answers.

    Raises:
        RecipeError: as `recognise`.
    """
    document = texts[0] if len(texts) == 1 else _first(names, _DOCUMENTS, texts)
    if len(texts) == 2 and _first(names, _QUESTIONS, texts) is not None:
        question = next(name for name in texts if _plain(name) in _QUESTIONS)
        return _answered(rows, None, [question], next(name for name in texts if name != question), is_guess=True)
    if len(texts) == 2 and document is None:
        return _answered(rows, None, texts[:1], texts[1], is_guess=True)
    if document is None or _plain(document) in ("question", "prompt", "instruction"):
        fix = "name the column of the answer `answer`, and that of the question `question`"
        raise RecipeError(f"{rows.source}: no column has the answer{_has(rows)}; {fix}")
    columns = {} if document == "text" else {"text": document}
    why = {"kind": f"{_column_text(document)} has texts and no column has answers: every token is learnt"}
    return Kind("plain_text", columns, why={**why, "columns": "the column with the texts"})


def _answered(
    rows: Survey, held_out: Survey | None, questions: Sequence[str], answer: str, is_guess: bool = False
) -> Kind:
    """Return the kind of rows with an answer: labels, or others."""
    column = rows.columns[answer]
    question = questions[0] if len(questions) == 1 else "\n".join(f"{{{name}}}" for name in questions)
    columns = {name: source for name, source in (("question", question), ("answer", answer)) if name != source}
    how = "guessed from two columns of text" if is_guess else "by the names of the columns"
    why = {"columns": f"{how}; rld check shows an example of what they make"}
    if not _are_labels(column, rows):
        return Kind("question_answer", columns, why={**why, "kind": "a question and its answer"})
    values = dict(column.values or {})
    if held_out is not None and answer in held_out.columns:
        values |= held_out.columns[answer].values or {}
    if len(values) == 1:
        raise RecipeError(
            f"{rows.source}: the column {answer!r} has {next(iter(values))!r} on every row; labels differ"
        )
    why["kind"] = f"{_column_text(answer)} has {len(values)} different values on {rows.num_rows:,} rows: labels"
    why["labels"] = "the words by which a model says each label, with the space behind the prompt's last word"
    if all(_NUMBER.fullmatch(value) for value in values):
        why["labels"] += '; write what the numbers mean, as in " Sports": a model knows words'
    return Kind("labelled", columns, _words(values), why)


def _are_labels(column: Column, rows: Survey) -> bool:
    if column.values is None or column.longest > _LONGEST_LABEL or column.num_texts < 2 * len(column.values):
        return False
    return _plain(column.name) in _LABELS or not all(_NUMBER.fullmatch(value) for value in column.values)


def _words(values: Collection[str]) -> dict[str, str]:
    """Return the words of labels by label; those that would be the same stay as the file has them."""
    words = {value: " " + " ".join(re.split(r"[\s_]+", value)).strip() for value in sorted(values)}
    return words if len(set(words.values())) == len(words) else {value: f" {value}" for value in words}


def _first(names: Mapping[str, str], candidates: Sequence[str], among: Collection[str]) -> str | None:
    return next((names[name] for name in candidates if name in names and names[name] in among), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _column_text(name: str) -> str:
    return f"column {name!r:.60}"


def _has(rows: Survey) -> str:
    return f" (it has {', '.join(map(repr, rows.columns)):.200})"
