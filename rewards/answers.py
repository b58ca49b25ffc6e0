"""Rewards that compare a completion with the row's gold answer."""

from __future__ import annotations

import logging
import time
import unicodedata
from typing import Any

from rld.errors import RewardError
from rld.utils.user_calls import UserCodeTimeout, user_code

from . import rejects_by, text_of
from .numbers import last_number

_FORMULA_SECONDS = 2.0
"""Seconds that reading a completion's formula and comparing it may take; ordinary ones take a few milliseconds."""

_SLOW_SECONDS = 30.0
"""Seconds of a call for formulas that reach their limit, after which `_SHORT_SECONDS` is the limit of the others."""

_SHORT_SECONDS = 0.2
"""Seconds that a formula may take in a call with many endless ones."""

_IOTA = "\N{COMBINING GREEK YPOGEGRAMMENI}"
"""The only combining character of which a letter of its own becomes where capitals don't matter."""


def _differs_from_gold(completions: list[Any], answer: list[str], *, case: bool = True, **_: Any) -> list[bool]:
    texts = [text_of(completion) for completion in completions]
    return [not can_become(gold, text, case=case) for text, gold in zip(texts, answer, strict=True)]


@rejects_by(_differs_from_gold)
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
        target, number = last_number(gold), last_number(text_of(completion))
        scores.append(None if target is None else float(number is not None and number.equals(target)))
    return scores


def math_verify(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """Give 1 where math-verify finds the completion's formula equal to the gold answer; otherwise 0.

    It parses and compares as TRL's `accuracy_reward` does: of the completion, what is in `\\boxed{...}`, or a formula
    in LaTeX delimiters that is called the final answer. A row whose gold answer it cannot parse gets None.

    A formula that takes more than 2 seconds, such as a tower of powers, gets 0; so does one of more than 0.2 seconds
    once 30 seconds of a call have gone to slow formulas. The limits hold in the main thread.

    Raises:
        RewardError: math-verify is not installed.
    """
    try:
        import math_verify as library
    except ModuleNotFoundError as error:
        fix = "install it with: pip install -e '.[math]', in a clone of rld"
        raise RewardError(f"answers:math_verify needs {error.name}; {fix}") from error
    for module in ("parser", "grader"):  # which warn that they have no limit of time
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    golds = {gold: library.parse(gold, parsing_timeout=None) for gold in set(answer)}
    scores: dict[tuple[str, str], float | None] = {}
    slow_seconds = 0.0
    pairs = [(text_of(completion), gold) for completion, gold in zip(completions, answer, strict=True)]
    for text, gold in dict.fromkeys(pairs):
        start = time.monotonic()
        seconds = _FORMULA_SECONDS if slow_seconds < _SLOW_SECONDS else _SHORT_SECONDS
        scores[text, gold] = _equals_formula(text, golds[gold], seconds) if golds[gold] else None
        duration = time.monotonic() - start
        slow_seconds += duration if duration >= _SHORT_SECONDS else 0.0
    return [scores[pair] for pair in pairs]


def _equals_formula(text: str, gold_formula: list[Any], seconds: float) -> float:
    """Return 1 where a text's formula equals the gold answer's; 0 where not, or where that takes too many seconds.

    The limits of math-verify are alarms that replace the one of the reward's call, so they are not used.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    formulas = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    try:
        with user_code(seconds):
            formula = parse(text, extraction_config=[formulas], extraction_mode="first_match", parsing_timeout=None)
            return float(verify(gold_formula, formula, timeout_seconds=None))
    except UserCodeTimeout:
        return 0.0


def can_become(gold: str, beginning: str, *, case: bool = True) -> bool:
    """Tell whether a completion that begins with a text may be the gold answer by `exact_match`.

    White space is left out of the comparison.
    """
    if not case and _IOTA in unicodedata.normalize("NFD", gold + beginning):
        return True  # equal texts with it may differ once they are decomposed and folded
    return _letters(gold, case=case).startswith(_first_letters(beginning, case=case))


def _first_letters(text: str, *, case: bool) -> str:
    """Return the beginning of `_letters` that a text has, whatever follows it."""
    beginning = _without_last_accents(unicodedata.normalize("NFD", text))
    return _without_last_accents(_letters(beginning, case=case))


def _letters(text: str, *, case: bool) -> str:
    """Return the characters of a text other than white space, in Unicode normal form D."""
    text = unicodedata.normalize("NFD", text)
    if not case:
        text = unicodedata.normalize("NFD", text.casefold())
    return "".join(text.split())


def _without_last_accents(text: str) -> str:
    """Return a text in form D without the combining characters at its end, which are sorted among those that follow."""
    size = len(text)
    while size and unicodedata.combining(text[size - 1]):
        size -= 1
    return text[:size]


def normal_text(text: str) -> str:
    """Return a text in Unicode normal form C, without white space around it."""
    return unicodedata.normalize("NFC", text).strip()
