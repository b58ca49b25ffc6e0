"""Rewards that compare the words of a completion with those of the gold answer: for questions and summaries.

They are between 0 and 1, so that a verifier needs `success_at`.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from typing import Any

from rld.errors import RewardError

from . import text_of

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

ROUGE = ("rouge1", "rouge2", "rougeL")


def word_match(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Give 1 to a completion with the words of the gold answer, in its order; otherwise 0.

    Case, punctuation, white space and the articles a, an and the do not count.

    Source: exact match in SQuAD's official script (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    pairs = zip(completions, answer, strict=True)
    return [float(_words(text_of(completion)) == _words(gold)) for completion, gold in pairs]


def token_f1(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """Give the harmonic mean of precision and recall of words, 0 to 1; their order does not count.

    Words are read as by `word_match`.

    Source: F1 in SQuAD's official script.
    """
    pairs = zip(completions, answer, strict=True)
    return [_f1(_words(text_of(completion)), _words(gold)) for completion, gold in pairs]


def rouge(completions: list[Any], answer: list[str], *, kind: str = "rougeL", **_: Any) -> list[float]:
    """Give the F-measure of ROUGE, 0 to 1, as the package rouge-score computes it with Porter's stemmer.

    Source: Lin 2004 (ROUGE).

    Args:
        kind: `rouge1` or `rouge2`, the overlap of words or of pairs of words, or `rougeL`, the longest common
            subsequence.

    Raises:
        RewardError: there is no such kind, or rouge-score is not installed.
    """
    if kind not in ROUGE:
        raise RewardError(f"text:rouge: kind {kind!r} is none of {', '.join(ROUGE)}")
    score = _rouge_scorer(kind).score
    pairs = zip(completions, answer, strict=True)
    return [float(score(gold, text_of(completion))[kind].fmeasure) for completion, gold in pairs]


@functools.cache
def _rouge_scorer(kind: str) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # imported late: it imports nltk, which takes a second
    except ModuleNotFoundError as error:
        fix = "install it with: pip install -e '.[text]', in a clone of rld"
        raise RewardError(f"text:rouge needs {error.name}; {fix}") from error
    return RougeScorer([kind], use_stemmer=True)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(words: list[str], gold: list[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    common = sum((Counter(words) & Counter(gold)).values())
    return 2 * common / (len(words) + len(gold))
