"""Rows with one label of a fixed set, which a model says in words of its own; a row may have no label."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from rld.data.items import Item
from rld.data.row_kinds.fields import Fields, text
from rld.utils.label_words import LabelWords
from rld.utils.suggestions import hint

NAMES = ("question", "answer", "level")


class UnknownLabel(ValueError):
    """A record has a label that is none of its skill's."""

    def __init__(self, label: str) -> None:
        self.label = label
        super().__init__(f"the label {label!r:.80} is none of `labels`")


def items(fields: Fields, *, labels: Mapping[str, str]) -> Iterator[Item]:
    """Yield the item of a record: its answer is the words of its label, None where it has no label.

    Args:
        fields: `question`, and `answer`, the label as the file has it: missing, null or empty where there is none.
        labels: The words that say each label, by the label as the file has it.

    Raises:
        UnknownLabel: the label is none of the set.
    """
    question = fields.text("question")
    value = fields.value("answer") if "answer" in fields else None
    label = "" if value is None else text(value, "answer", is_required=False).strip()
    if label and label not in labels:
        raise UnknownLabel(label)
    yield Item(question, labels[label] if label else None, fields.others())


def _by_name(value: Any) -> Any:
    """Return the labels of a recipe by name: a mapping with names as text, or a list of words that are the names.

    Raises:
        ValueError: a list has the same words twice.
    """
    if isinstance(value, Mapping):
        return _with_text_keys(value)
    if not isinstance(value, list) or not all(isinstance(words, str) for words in value):
        return value
    names = [words.strip() for words in value]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"the words {twice!r} are there twice")
    return dict(zip(names, value, strict=True))


def _with_text_keys(value: Any) -> Any:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


def _different(labels: dict[str, str]) -> dict[str, str]:
    """Return labels that can be told apart; words are the same up to white space and the form of accents.

    Raises:
        ValueError: there is one alone, one has no words, or two have the same.
    """
    if len(labels) == 1:
        raise ValueError("there should be two labels at least")
    labels_by_words: dict[str, str] = {}
    for label, words in labels.items():
        plain = " ".join(unicodedata.normalize("NFC", words).split())
        if not plain:
            raise ValueError(f"label {label!r} has no words")
        if plain in labels_by_words:
            raise ValueError(f"labels {labels_by_words[plain]!r} and {label!r} have the same words, {plain!r}")
        labels_by_words[plain] = label
    return labels


Labels = Annotated[dict[str, str], BeforeValidator(_by_name), AfterValidator(_different)]
"""The labels of a skill: by the name that the file gives a label, the words that say it."""


Synonyms = Annotated[dict[str, list[str]], BeforeValidator(_with_text_keys)]
"""Further words of some labels, by the name that the file gives a label."""


def label_words(labels: Mapping[str, str], synonyms: Mapping[str, Sequence[str]]) -> LabelWords:
    """Return the words of a skill's labels with their synonyms."""
    return LabelWords([*labels.values()], [synonyms.get(label, []) for label in labels])


def synonym_problem(labels: Mapping[str, str], synonyms: Mapping[str, Sequence[str]]) -> str | None:
    """Return what is wrong with the synonyms of a skill's labels, as a clause; None if nothing."""
    unknown = next((label for label in synonyms if label not in labels), None)
    if unknown is not None:
        return f"there is no label {unknown!r}{hint(unknown, labels)}"
    return label_words(labels, synonyms).problem()


def unused(labels: Mapping[str, str], answers: set[str]) -> list[str]:
    """Return the labels whose words are no row's answer; none if no row has an answer."""
    return [label for label, words in labels.items() if words not in answers] if answers else []
