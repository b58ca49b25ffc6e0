"""Rewards that compare a completion with the row's gold answer."""

from __future__ import annotations

import unicodedata
from typing import Any

from . import text_of
from .numbers import last_number


def exact_match(completions: list[Any], answer: list[str], *, case: bool = True, **_: Any) -> list[float]:
    """Give 1 to a completion that is the gold answer and nothing else, up to white space around it; otherwise 0.

    Composed and decomposed characters are the same text (Unicode normal form C).

    Args:
        case: Whether capitals matter.
    """
    texts = [normal_text(text_of(completion)) for completion in completions]
    golds = [normal_text(gold) for gold in answer]
    if not case:
        texts, golds = [text.casefold() for text in texts], [gold.casefold() for gold in golds]
    return [float(text == gold) for text, gold in zip(texts, golds, strict=True)]


def final_number(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """Give 1 where the last number in the completion equals the last number in the gold answer; otherwise 0.

    So a completion may reason before it answers, and a gold answer may too. Numbers are compared by value: `1/2`, `.5`
    and `0.50` are equal, and `50%` equals 50 as well as 0.5. `numbers.py` says what is read as a number; of a text with
    `\\boxed{...}` the last box is read. A row whose gold answer has no number gets None.
    """
    scores: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        wanted, number = last_number(gold), last_number(text_of(completion))
        scores.append(None if wanted is None else float(number is not None and number.equals(wanted)))
    return scores


def normal_text(text: str) -> str:
    """Return a text in Unicode normal form C, without white space around it."""
    return unicodedata.normalize("NFC", text).strip()
