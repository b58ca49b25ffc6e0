"""Rewards by the verifiers of reasoning-gym, which know every correct answer, not only the gold one.

Some of these verifiers pay for more than correct answers. All tasks of version 0.1.25 were tried with constant texts,
empty and non-finite answers, negated gold answers and the gold answers of other puzzles. What was paid wrongly is
refused here, and a test repeats the trial.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from rld.utils import puzzles

from . import rejects_by, text_of
from .answers import can_become, normal_text
from .numbers import numbers_in, only_number

_NAME = "reasoning:exact_credit"
_NONSENSE = "\N{REPLACEMENT CHARACTER}"
_NOT_FINITE = re.compile(r"(?i)(?<![a-z])(nan|inf|infinity)(?![a-z])")
_NEGATION = re.compile(r"(?is)^(?:[-\u2212~!\u00ac\s]|not\b)+(.*)$")
_TOLERANCE = Fraction(1, 10_000)
"""Share of the gold number by which an answer may differ, for answers that are rounded."""

_DECIMAL_TASKS = frozenset({"chain_sum", "products", "decimal_chain_sum"})
"""Tasks whose verifiers give full credit to decimals of the gold answer's value alone."""
_DECIMAL_BEGINNING = re.compile(r"([-+]?)([0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9_]*)?")


def _is_lost(completions: list[Any], answer: list[str], entry: list[str], **_: Any) -> list[bool]:
    """Tell which texts, as beginnings of completions, can't become one that `exact_credit` gives 1."""
    entries = [json.loads(row_entry) if row_entry else {} for row_entry in entry]
    texts = [text_of(completion) for completion in completions]
    return [_begins_wrongly(*pair) for pair in zip(texts, answer, entries, strict=True)]


def _begins_wrongly(text: str, gold: str, entry: dict[str, Any]) -> bool:
    if "task" not in entry or "config" not in entry:
        return not can_become(gold, text)
    if entry["answer"] is None:
        return False
    if entry["task"] in _DECIMAL_TASKS:
        return _is_no_beginning_of(text, entry["answer"])
    return _takes_only_gold(entry["task"]) and not can_become(entry["answer"], text)


def _is_no_beginning_of(text: str, gold: str) -> bool:
    """Tell whether no decimal of the value of `gold` begins with a text: its sign or its first digits differ."""
    letters = "".join(text.split()).replace(",", "")
    match = _DECIMAL_BEGINNING.fullmatch(letters)
    try:
        number = Decimal(gold.replace(",", ""))
    except InvalidOperation:
        return False
    if not letters or not letters.isascii() or not number.is_finite():
        return False
    if match is None:
        return True
    digits = re.sub(r"[._]", "", match[2]).lstrip("0")
    if not number:
        return bool(digits)
    gold_digits = "".join(map(str, number.as_tuple().digits)).lstrip("0") + "0" * len(digits)
    return (match[1] == "-") != (number < 0) or not gold_digits.startswith(digits)


@functools.cache
def _takes_only_gold(task: str) -> bool:
    """Tell whether a task has reasoning-gym's own verifier, which gives full credit to the gold answer alone."""
    library = puzzles.reasoning_gym(_NAME)
    verifier = library.factory.DATASETS[task][0].score_answer if task in library.factory.DATASETS else None
    return verifier is library.dataset.ProceduralDataset.score_answer


@rejects_by(_is_lost)
def exact_credit(completions: list[Any], answer: list[str], entry: list[str], **_: Any) -> list[float]:
    """Give 1 where reasoning-gym's verifier gives full credit, and 0 where it gives only some.

    Rows of other kinds, whose `entry` is empty or has no task, are compared with their gold answer.
    """
    texts = [normal_text(text_of(completion)) for completion in completions]
    entries = [json.loads(row_entry) if row_entry else {} for row_entry in entry]
    return [
        float(_is_solved(text, row) if "task" in row and "config" in row else text == normal_text(gold))
        for text, gold, row in zip(texts, answer, entries, strict=True)
    ]


def _is_solved(text: str, entry: dict[str, Any]) -> bool:
    gold = entry["answer"]
    if gold is not None and text == normal_text(gold):
        return True
    if not text or _contradicts(text, gold or "", entry):
        return False
    score = _scorer(entry["task"], json.dumps(entry["config"], sort_keys=True))
    # Some verifiers give full credit to any text at all when the answer is a negative one.
    return _full_credit(score, text, entry) and not _full_credit(score, _NONSENSE, entry)


def _contradicts(text: str, gold: str, entry: dict[str, Any]) -> bool:
    """Tell whether an answer is wrong whatever the verifier says."""
    if _NOT_FINITE.search(text) and not _NOT_FINITE.search(gold):
        return True  # complex_arithmetic pays `nan` in full
    if _without_negation(text) == _without_negation(gold) and text != gold:
        target, negated = only_number(gold), only_number(text)
        return target is None or negated is None or target.value != negated.value
    target = only_number(gold)
    if target is not None:
        # coin_flip pays a common beginning of two decimals, gsm_symbolic a number without its sign.
        numbers = numbers_in(text)
        within = _TOLERANCE * max(Fraction(1), abs(target.value))
        return bool(numbers) and all(abs(number.value - target.value) > within for number in numbers)
    if entry["task"] == "puzzle24":  # its verifier does not look at which numbers were given
        return sorted(map(int, re.findall(r"\d+", text))) != sorted(entry["metadata"]["numbers"])
    return False


def _without_negation(text: str) -> str:
    """Return a text without minus signs, the word `not` and brackets around the rest; many verifiers ignore them."""
    match = _NEGATION.match(text)
    return match[1].strip("() \n") if match else text


def _full_credit(score: Callable[[str, dict[str, Any]], float], text: str, entry: dict[str, Any]) -> bool:
    try:
        # Sums of partial credits come close to 1 on either side, and are not full credit.
        return score(text, entry) == 1.0
    except Exception:  # verifiers parse the text, and some raise on what they cannot parse: it is not an answer
        return False


@functools.cache
def _scorer(task: str, config: str) -> Callable[[str, dict[str, Any]], float]:
    dataset = puzzles.reasoning_gym(_NAME).create_dataset(task, **json.loads(config))
    scorer: Callable[[str, dict[str, Any]], float] = dataset.score_answer
    return scorer
