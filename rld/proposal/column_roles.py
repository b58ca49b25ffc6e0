"""What a column is likely to hold: by its name, and by the values in it."""

from __future__ import annotations

import re

from rld.proposal.survey import Column

LABELS = (
    *("label_text", "label_name", "label", "labels", "class", "category", "sentiment", "topic", "intent", "tag"),
    *("emotion", "section", "genre"),
)
ANSWERS = ("answer", "completion", "output", "response", "target", "summary", "solution", "translation", "reply")
PROMPTS = ("question", "prompt", "instruction")
"""Names of questions that are never answers or documents."""
CONTEXTS = ("input", "context", "passage", "choices", "options")
"""Names of what stands beside a question, and may be empty on many rows."""
QUESTIONS = (
    *(*PROMPTS, "input", "query", "problem", "title", "headline", "subject", "text"),
    *("sentence", "sentence1", "sentence2", "premise", "hypothesis", "review", "article", "document", "content"),
    *("body", "description", "message", "comment", "tweet", "source", "dialogue"),
)
DOCUMENTS = ("text", "content", "document", "body", "article", "code")

_LONGEST_LABEL = 60
"""Characters."""

_LONGEST_NAME = 60
"""Characters of a column's name of several words: what is longer is more likely a cell."""

_FEWEST_NUMBERS = 3
"""Numbers that are taken for row numbers where they count up; two may do so by chance."""

_NUMBER = re.compile(r"[-+]?\d[\d.,]*")

_IDENTIFIER = re.compile(r"(id|idx|index|uuid|guid|key|url|uri|timestamp|unnamed:.*|.*_(id|uuid|url|uri))?")


def plain(name: str) -> str:
    """Return a name in small letters and with underscores, as the lists here have it: `user_id` for `userID`."""
    return re.sub(r"[\s-]+|(?<=[a-z])(?=[A-Z])", "_", name.strip()).lower()


def has_identifier_name(column: Column) -> bool:
    """Tell whether a column's name says that it has keys of rows, addresses or times; one without a name has keys."""
    return _IDENTIFIER.fullmatch(plain(column.name)) is not None


def is_identifier(column: Column) -> bool:
    """Tell whether a column tells rows apart: by its name or, where that says nothing, by numbers that count up."""
    has_known_name = plain(column.name) in (*LABELS, *ANSWERS, *QUESTIONS, *CONTEXTS)
    counts_rows = column.counts_up and column.num_texts >= _FEWEST_NUMBERS
    return has_identifier_name(column) or (counts_rows and not has_known_name)


def has_labels(column: Column) -> bool:
    """Tell whether a column has few short values, each on several rows; numbers are labels by its name alone."""
    values = column.values
    if values is None or column.longest > _LONGEST_LABEL or column.num_texts < 2 * len(values):
        return False
    return plain(column.name) in LABELS or not are_numbers(*values)


def are_numbers(*values: str) -> bool:
    """Tell whether all values are numbers."""
    return all(_NUMBER.fullmatch(value) for value in values)


def looks_like_data(column: Column) -> bool:
    """Tell whether a column's name is a number, a sentence, a long text, or one of the few values in the column."""
    name = column.name
    has_words = len(name.split()) > 2
    is_sentence = has_words and (name.endswith((".", "?", "!")) or len(name) > _LONGEST_NAME)
    return is_sentence or are_numbers(name) or name in (column.values or {})
