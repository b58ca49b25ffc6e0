"""Rewards that compare a completion with the row's gold answer."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from . import text_of

# A minus after a digit, a letter or a bracket is a subtraction.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+")


def exact_match(completions: list[Any], answer: list[str], *, case: bool = True, **_: Any) -> list[float]:
    """Give 1 to a completion that is the gold answer and nothing else, up to white space around it; otherwise 0.

    Args:
        case: Whether capitals matter.
    """
    texts = [text_of(completion).strip() for completion in completions]
    golds = [gold.strip() for gold in answer]
    if not case:
        texts, golds = [text.casefold() for text in texts], [gold.casefold() for gold in golds]
    return [float(text == gold) for text, gold in zip(texts, golds, strict=True)]


def final_number(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """Give 1 where the last number in the completion equals the last number in the gold answer; otherwise 0.

    So a completion may reason before it answers, and a gold answer may too. A row whose gold answer has no number
    gets None.
    """
    found = [_last_number(text_of(completion)) for completion in completions]
    golds = [_last_number(gold) for gold in answer]
    return [None if gold is None else float(number == gold) for number, gold in zip(found, golds, strict=True)]


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
