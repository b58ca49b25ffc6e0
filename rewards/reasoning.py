"""Rewards by the verifiers of reasoning-gym, which know every correct answer, not only the gold one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from . import text_of

_NONSENSE = "\N{REPLACEMENT CHARACTER}"


def exact_credit(completions: list[Any], answer: list[str], entry: list[str], **_: Any) -> list[float]:
    """Give 1 where reasoning-gym's verifier gives full credit, and 0 where it gives only some.

    Rows of other kinds, whose `entry` is empty, are compared with their gold answer.
    """
    texts = [text_of(completion).strip() for completion in completions]
    return [
        float(text == gold.strip() if not found else _is_solved(text, json.loads(found)))
        for text, gold, found in zip(texts, answer, entry, strict=True)
    ]


def _is_solved(text: str, entry: dict[str, Any]) -> bool:
    if entry["answer"] is not None and text == entry["answer"].strip():
        return True
    score = _scorer(entry["task"], json.dumps(entry["config"], sort_keys=True))
    # Some verifiers give full credit to any text at all when the answer is a negative one.
    return bool(text) and _full_credit(score, text, entry) and not _full_credit(score, _NONSENSE, entry)


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
