"""Rewards that compare a completion with the row's gold answer."""

from __future__ import annotations

import threading
import unicodedata
from typing import Any

from rld.errors import RewardError

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


def math_verify(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
    """Give 1 where math-verify finds the completion's formula equal to the gold answer; otherwise 0.

    It parses and compares as TRL's `accuracy_reward` does: of the completion, what is in `\\boxed{...}`, or a formula
    in LaTeX delimiters that is called the final answer. A row whose gold answer it cannot parse gets None.

    Raises:
        RewardError: math-verify is not installed.
    """
    try:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import LatexExtractionConfig, parse, verify
    except ModuleNotFoundError as error:
        fix = "install it with: pip install -e '.[math]', in a clone of rld"
        raise RewardError(f"answers:math_verify needs {error.name}; {fix}") from error
    # Its limits of time are alarms, which only the main thread gets.
    is_main = threading.current_thread() is threading.main_thread()
    parsing_timeout, timeout_seconds = (10, 5) if is_main else (None, None)
    formulas = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    scores: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        gold_formula = parse(gold, parsing_timeout=parsing_timeout)
        formula = parse(
            text_of(completion),
            extraction_config=[formulas],
            extraction_mode="first_match",
            parsing_timeout=parsing_timeout,
        )
        scores.append(float(verify(gold_formula, formula, timeout_seconds=timeout_seconds)) if gold_formula else None)
    return scores


def normal_text(text: str) -> str:
    """Return a text in Unicode normal form C, without white space around it."""
    return unicodedata.normalize("NFC", text).strip()
