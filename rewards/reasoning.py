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
from fractions import Fraction
from typing import Any

from . import text_of
from .answers import normal_text
from .numbers import numbers_in, only_number

_NONSENSE = "\N{REPLACEMENT CHARACTER}"
_NOT_FINITE = re.compile(r"(?i)(?<![a-z])(nan|inf|infinity)(?![a-z])")
_NEGATION = re.compile(r"(?is)^(?:[-\u2212~!\u00ac\s]|not\b)+(.*)$")
_TOLERANCE = Fraction(1, 10_000)
"""Share of the gold number by which an answer may differ, for answers that are rounded."""


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
        wanted, negated = only_number(gold), only_number(text)
        return wanted is None or negated is None or wanted.value != negated.value
    wanted = only_number(gold)
    if wanted is not None:
        # coin_flip pays a common beginning of two decimals, gsm_symbolic a number without its sign.
        numbers = numbers_in(text)
        within = _TOLERANCE * max(Fraction(1), abs(wanted.value))
        return bool(numbers) and all(abs(number.value - wanted.value) > within for number in numbers)
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
    import reasoning_gym  # takes a second, and only these rows need it

    dataset = reasoning_gym.create_dataset(task, **json.loads(config))
    scorer: Callable[[str, dict[str, Any]], float] = dataset.score_answer
    return scorer
