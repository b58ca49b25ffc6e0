"""Which kind of rows a file has, and in which columns their values stand: as is said, by names, then by values."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rld.data.formats import csv
from rld.data.formats.files import row_files
from rld.data.row_kinds import ROW_KINDS, RowReader
from rld.data.row_kinds.fields import columns_named_in
from rld.errors import RecipeError
from rld.proposal.column_roles import (
    ANSWERS,
    CONTEXTS,
    DOCUMENTS,
    LABELS,
    PROMPTS,
    QUESTIONS,
    are_numbers,
    has_identifier_name,
    has_labels,
    is_identifier,
    looks_like_data,
    plain,
)
from rld.proposal.survey import Survey

_LEVEL = "level"
"""A column that every kind reads as the difficulty of a row."""

_OPTIONS = "--question and --answer"

Why = dict[str, str]
"""Of each key of a skill, why its value stands there."""


class ColumnChoice(NamedTuple):
    """The columns that the command line names.

    Attributes:
        question: Those of the question, in their order. Empty: they are told by names and values.
        answer: That of the answer. None: it is told by names and values.
    """

    question: Sequence[str]
    answer: str | None

    @property
    def options(self) -> list[str]:
        """The options that name columns."""
        return ["--question"] * bool(self.question) + ["--answer"] * (self.answer is not None)

    def require_in(self, rows: Survey) -> None:
        """Check that rows have the columns.

        Raises:
            RecipeError: they have not, or one of them is question and answer.
        """
        answers = [] if self.answer is None else [self.answer]
        for option, names in (("--question", self.question), ("--answer", answers)):
            absent = next((name for name in names if name not in rows.columns), None)
            if absent is not None:
                raise RecipeError(
                    f"{option}: {rows.source} has no column {absent!r:.80}{_has(rows)}; choose from these"
                )
        if self.answer in self.question:
            raise RecipeError(f"{_OPTIONS} name the same column, {self.answer!r}; a question is not its own answer")


@dataclass(frozen=True)
class Kind:
    """The kind of rows, and what a skill says of them.

    Attributes:
        name: A name in `ROW_KINDS`.
        columns: As of a skill.
        labels: As of a skill.
        why: Of each of these, and of `kind`, why it was chosen.
        cautions: What may be a mistake, a sentence each.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    why: Why = field(default_factory=dict)
    cautions: Sequence[str] = ()

    @property
    def reader(self) -> RowReader:
        """What makes items of its rows."""
        options: dict[str, dict[str, Any]] = {
            "labelled": {"labels": self.labels},
            "conversation": {"turns": "all"},
            "plain_text": {"document_separator": None},
        }
        return RowReader(self.name, self.columns, options.get(self.name, {}))


def recognise(rows: Survey, held_out: Survey | None, choice: ColumnChoice) -> Kind:
    """Return the kind of a source's rows and their columns.

    Args:
        rows: The rows to train on.
        held_out: Rows of their own for scores, which may have further labels.
        choice: The columns that the command line names.

    Raises:
        RecipeError: it cannot be told which column is the question or the answer, a column that is named does not
            exist, or rows have a kind for which no recipe is written.
    """
    if rows.is_text:
        if choice.options:
            fix = f"leave out {' and '.join(choice.options)}"
            raise RecipeError(f"{rows.source} is text, which has no columns; {fix}")
        return Kind("plain_text", why={"kind": "the files are texts: every token is learnt"})
    if choice.options:
        choice.require_in(rows)
        return _with_unused(_of_texts(rows, held_out, choice), rows)
    _require_names(rows)
    if {"prompt", "tests"} <= {*map(plain, rows.columns)}:
        fix = "begin with a copy of the recipe for them: rld copy code"
        raise RecipeError(f"{rows.source}: the columns prompt and tests are those of programming tasks; {fix}")
    talks = next((column for column in rows.columns.values() if 2 * column.num_messages > rows.num_rows), None)
    return _with_unused(_of_texts(rows, held_out, choice) if talks is None else _of_messages(talks.name), rows)


def _require_names(rows: Survey) -> None:
    """Refuse a file whose first line has no names of columns, but the first row.

    Raises:
        RecipeError: it is one.
    """
    if not isinstance(rows.source, Path) or row_files(rows.source)[0].suffix not in csv.SUFFIXES:
        return
    name = next((name for name, column in rows.columns.items() if looks_like_data(column)), None)
    if name is not None:
        fix = f"{csv.NAMES_FIRST}; if it is a name, say by {_OPTIONS} which columns they are"
        raise RecipeError(f"{rows.source}: the column name {name!r:.60} looks like data; {fix}")


def _of_messages(column: str) -> Kind:
    is_prompt = column == "prompt" or column == "completion"
    columns = {} if is_prompt or column == "messages" else {"messages": column}
    why = f"{_column_text(column)} has chat messages; each answer in them is learnt"
    return Kind("conversation", columns, why={"kind": why, "columns": "the column with the messages"})


def _of_texts(rows: Survey, held_out: Survey | None, choice: ColumnChoice) -> Kind:
    """Return the kind of rows whose columns have texts.

    Raises:
        RecipeError: as `recognise`.
    """
    names = {plain(name): name for name in reversed(rows.columns)}
    are_texts = {name: 2 * column.num_texts > rows.num_rows for name, column in rows.columns.items()}
    texts = [name for name in rows.columns if are_texts[name] and not is_identifier(rows.columns[name])]
    texts = [name for name in texts if plain(name) != _LEVEL and name not in choice.question]
    others = [name for name in rows.columns if name not in choice.question]
    guesses = []
    answer = choice.answer or _first(names, (*ANSWERS, *LABELS), others)
    if answer is None and (answer := _answer_by_values(rows, texts, bool(choice.question))):
        guesses.append(f"answer {answer!r:.60}")
    if answer is None:
        return _documents(rows, names, [] if choice.question else texts)
    questions = list(choice.question)
    if not questions:
        questions, is_guess = _questions(rows, texts, answer)
        if is_guess or guesses:
            guesses.insert(0, f"question {', '.join(map(repr, questions)):.100}")
    if not questions:
        raise RecipeError(
            f"{rows.source}: the answer is in {answer!r}, but no column has the question{_has(rows)}; "
            "name it by --question"
        )
    kind = _answered(rows, held_out, questions, answer)
    how = "guessed, as their names do not tell them" if guesses else "by the names of the columns"
    if choice.options:
        how = f"by {' and '.join(choice.options)}" + (f", else {how}" if len(choice.options) == 1 else "")
    cautions = [f"{rows.source}: guessed: {', '.join(guesses)}; {_OPTIONS} name others"] if guesses else []
    kind.why["columns"] = f"{how}; rld check shows an example of what they make"
    return replace(kind, cautions=cautions)


def _answer_by_values(rows: Survey, texts: Sequence[str], has_question: bool) -> str | None:
    """Return the only column of labels or else, of a pair of texts, the one that is not the question.

    Args:
        rows: The rows.
        texts: Their columns of text, without those that are known to be the question.
        has_question: Whether there are such.
    """
    labels = [name for name in texts if not _is_question(name) and has_labels(rows.columns[name])]
    labels = [name for name in labels if len(rows.columns[name].values or {}) > 1]
    if len(labels) == 1 and (has_question or len(texts) > 1):
        return labels[0]
    if has_question:
        return texts[0] if len(texts) == 1 else None
    return _answer_of_pair(*texts) if len(texts) == 2 else None


def _answer_of_pair(first: str, second: str) -> str | None:
    """Return which of two columns of text answers the other; None where names say that none does."""
    question, answer = (second, first) if _is_question(second) and not _is_question(first) else (first, second)
    if not _is_question(question):
        return None if {plain(question), plain(answer)} & {*DOCUMENTS} else answer
    has_title = plain(answer) in DOCUMENTS and _is_question(answer) and plain(question) not in PROMPTS
    return None if has_title or plain(answer) in PROMPTS else answer


def _is_question(name: str) -> bool:
    """Tell whether a column is part of questions by its name."""
    return plain(name) in (*QUESTIONS, *CONTEXTS)


def _questions(rows: Survey, texts: Sequence[str], answer: str) -> tuple[list[str], bool]:
    """Return the columns of the question, in the order of the file, and whether they are a guess."""
    others = [name for name in texts if name != answer]
    main = [name for name in others if plain(name) in QUESTIONS]
    is_guess = False
    if not main:
        unknown = [name for name in others if plain(name) not in CONTEXTS]
        columns = [rows.columns[name] for name in unknown]
        longest = max(columns, key=lambda column: column.num_characters / column.num_texts, default=None)
        main, is_guess = [longest.name] if longest else [], len(unknown) > 1
    for name, column in rows.columns.items():
        is_read = column.num_filled > 0 and column.num_readable == rows.num_records
        if plain(name) in CONTEXTS and name != answer and (name in others or is_read):
            main.append(name)
    return [name for name in rows.columns if name in main], is_guess


def _documents(rows: Survey, names: Mapping[str, str], texts: Sequence[str]) -> Kind:
    """Return the kind of rows without an answer.

    Raises:
        RecipeError: no column has documents.
    """
    document = texts[0] if len(texts) == 1 else _first(names, DOCUMENTS, texts)
    if document is None or plain(document) in PROMPTS:
        fix = "name it by --answer, and the columns of the question by --question"
        raise RecipeError(f"{rows.source}: no column has the answer{_has(rows)}; {fix}")
    columns = {} if document == "text" else {"text": document}
    why = {"kind": f"{_column_text(document)} has texts and no column has answers: every token is learnt"}
    cautions = []
    if plain(document) not in DOCUMENTS:
        fix = "--answer names the column of the answer"
        cautions.append(f"{rows.source}: no column has the answer, so {document!r:.60} is taken for documents; {fix}")
    return Kind("plain_text", columns, why={**why, "columns": "the column with the texts"}, cautions=cautions)


def _answered(rows: Survey, held_out: Survey | None, questions: Sequence[str], answer: str) -> Kind:
    """Return the kind of rows with an answer: labels, or others."""
    column = rows.columns[answer]
    question = questions[0] if len(questions) == 1 else "\n".join(f"{{{name}}}" for name in questions)
    columns = {name: source for name, source in (("question", question), ("answer", answer)) if name != source}
    if not has_labels(column):
        return Kind("question_answer", columns, why={"kind": "a question and its answer"})
    values = dict(column.values or {})
    if held_out is not None and answer in held_out.columns:
        values |= held_out.columns[answer].values or {}
    if len(values) == 1:
        raise RecipeError(
            f"{rows.source}: the column {answer!r} has {next(iter(values))!r} on every row; labels differ"
        )
    why = {"kind": f"{_column_text(answer)} has {len(values)} different values on {rows.num_rows:,} rows: labels"}
    why["labels"] = "the words by which a model says each label, with the space behind the prompt's last word"
    if are_numbers(*values):
        why["labels"] += '; write what the numbers mean, as in " Sports": a model knows words'
    return Kind("labelled", columns, _words(values), why)


def _with_unused(kind: Kind, rows: Survey) -> Kind:
    """Return a kind that tells which columns it does not read, but those of keys."""
    names = ("question", "answer", _LEVEL) if kind.name == "question_answer" else ROW_KINDS[kind.name].names
    used = {column for name in names for column in columns_named_in(kind.columns.get(name, name))}
    unused = [
        name
        for name, column in rows.columns.items()
        if column.num_filled and name not in used and not has_identifier_name(column)
    ]
    if not unused:
        return kind
    listed = f"{', '.join(map(repr, unused)):.200}"
    fix = "" if kind.name == "conversation" else f"; {_OPTIONS} name columns to use"
    caution = f"{rows.source}: columns that are not used: {listed}{fix}"
    why = {**kind.why, "kind": f"{kind.why['kind']}; not used: {listed}"}
    return replace(kind, why=why, cautions=[*kind.cautions, caution])


def _words(values: Collection[str]) -> dict[str, str]:
    """Return the words of labels by label; those that would be the same stay as the file has them."""
    words = {value: " " + " ".join(re.split(r"[\s_]+", value)).strip() for value in sorted(values)}
    return words if len(set(words.values())) == len(words) else {value: f" {value}" for value in words}


def _first(names: Mapping[str, str], candidates: Sequence[str], among: Collection[str]) -> str | None:
    return next((names[name] for name in candidates if name in names and names[name] in among), None)


def _column_text(name: str) -> str:
    return f"column {name!r:.60}"


def _has(rows: Survey) -> str:
    return f" (it has {', '.join(map(repr, rows.columns)):.200})"
