"""The scores that a skill may have, by name. To add one, write its metric in `metrics/` and an entry of `SCORES`.

A score is computed from a skill's held-out rows and what a model predicts for them. This module computes nothing, so
that a recipe is checked without the libraries.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rld.evaluation.predictions import Prediction
from rld.types import Predicts, Row
from rld.utils.options import OptionError
from rld.utils.suggestions import hint

_ROUGE = "rouge-score"

_EXTRAS = {_ROUGE: "text"}
"""Extras of rld that have a package."""


class Score(NamedTuple):
    """How a score is computed.

    Attributes:
        meaning: What it says, in one line.
        predicts: What the models predict from whose rows it is computed.
        metric: The name of a file in `metrics/`, a `ScoreMetric`.
        columns: Returns what the metric reads of a row and its prediction.
        options: Further arguments of the metric.
        is_share: Whether it is in [0, 1], and more is better. Only such a score can be the main score of a skill.
        needs_gold: Whether each row needs a gold answer.
        package: A package that the metric needs and rld does not; "" for none.
        num_samples: The number of answers that are to be sampled for each row, at least.
    """

    meaning: str
    predicts: Predicts
    metric: str
    columns: Callable[[Row, Prediction], dict[str, Any]]
    options: Mapping[str, Any] = MappingProxyType({})
    is_share: bool = True
    needs_gold: bool = True
    package: str = ""
    num_samples: int = 0


def _reward(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"predictions": prediction.reward}


def _texts(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"predictions": prediction.scored, "references": row["answer"]}


def _labels(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"predictions": prediction.answer, "references": row["answer"]}


def _confidences(row: Row, prediction: Prediction) -> dict[str, Any]:
    assert prediction.probabilities is not None  # of rows with labels
    return {**_labels(row, prediction), "confidences": prediction.probabilities[prediction.answer]}


def _samples(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"predictions": prediction.sample_rewards}


def _rouge(kind: str, meaning: str) -> Score:
    return Score(
        f"overlap of {meaning}, as rouge-score has it", "text", "rouge", _texts, {"kind": kind}, package=_ROUGE
    )


def _nats_of_bytes(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"nats": prediction.nats, "sizes": prediction.num_bytes}


def _nats_of_tokens(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"nats": prediction.nats, "sizes": prediction.num_tokens}


SCORES: dict[str, Score] = {
    "solved": Score("share of answers that the judge calls correct", "text", "solved", _reward, needs_gold=False),
    "exact_match": Score(
        "share of answers that are the gold answer, up to white space around them", "text", "exact_match", _texts
    ),
    "word_match": Score(
        "share of answers with the gold answer's words: exact match of SQuAD", "text", "word_match", _texts
    ),
    "token_f1": Score("F1 of the words of answer and gold answer, as in SQuAD", "text", "token_f1", _texts),
    "rouge_1": _rouge("rouge1", "words"),
    "rouge_2": _rouge("rouge2", "pairs of words"),
    "rouge_l": _rouge("rougeL", "longest common subsequences"),
    "accuracy": Score("share of rows whose likeliest label is the gold one", "label", "accuracy", _labels),
    "macro_f1": Score("F1 of each label, mean over labels", "label", "macro_f1", _labels),
    "calibration_error": Score(
        "mean distance of confidence and accuracy (ECE, 15 bins); less is better",
        "label",
        "calibration_error",
        _confidences,
        is_share=False,
    ),
    "byte_probability": Score(
        "geometric mean of the probability of a byte: exp(-nats per byte)",
        "likelihood",
        "byte_probability",
        _nats_of_bytes,
        needs_gold=False,
    ),
    "nats_per_byte": Score(
        "negative log-probability per byte; comparable across tokenizers",
        "likelihood",
        "nats_per_unit",
        _nats_of_bytes,
        is_share=False,
        needs_gold=False,
    ),
    "perplexity": Score(
        "exp(nats per token); comparable for one tokenizer alone",
        "likelihood",
        "perplexity",
        _nats_of_tokens,
        is_share=False,
        needs_gold=False,
    ),
}
"""The scores by their name in a recipe, but for `pass_at_K`, of which there is one for each K."""

DEFAULT_SCORES: Mapping[Predicts, tuple[str, ...]] = {
    "text": ("solved",),
    "label": ("accuracy", "macro_f1", "calibration_error"),
    "likelihood": ("byte_probability", "nats_per_byte", "perplexity"),
}
"""The scores of a skill that names none, its main score first."""


def find_score(name: str) -> Score | None:
    """Return the score of a name, None if there is none."""
    tries = re.fullmatch(r"pass_at_([1-9][0-9]{0,3})", name)
    if tries is None:
        return SCORES.get(name)
    k = int(tries[1])
    meaning = f"probability that one of {k} sampled answers is correct"
    return Score(meaning, "text", "pass_at_k", _samples, {"k": k}, needs_gold=False, num_samples=k)


def require_scores(names: Sequence[str], predicts: Predicts, num_samples: int = 0) -> None:
    """Check that a skill may have scores, the first of them as its main score.

    Args:
        names: Their names.
        predicts: What a model predicts of the skill's rows.
        num_samples: The number of answers that are sampled for each row.

    Raises:
        OptionError: it may not; the message says why.
    """
    for i, name in enumerate(names):
        if name in names[:i]:
            raise OptionError(f"the score {name} is named twice", "scores")
        _require_score(name, predicts, num_samples)
    main = find_score(names[0]) if names else None
    if main is not None and not main.is_share:
        shares = ", ".join(name for name in _possible(predicts) if SCORES[name].is_share)
        raise OptionError(
            f"the first score is the skill's main one, which is between 0 and 1 and better where it is larger, and "
            f"{names[0]} is not; put one of these first: {shares}",
            "scores",
        )
    if num_samples and not any(score.num_samples for score in map(find_score, names) if score is not None):
        message = "samples are drawn for scores such as pass_at_1, and the skill has none in its scores"
        raise OptionError(message, "samples")


def _require_score(name: str, predicts: Predicts, num_samples: int) -> None:
    score, possible = find_score(name), _possible(predicts)
    if score is None:
        raise OptionError(f"there is no score {name!r}{hint(name, possible)}", "scores")
    if score.predicts != predicts:
        raise OptionError(
            f"the score {name} is of a {score.predicts}, and these rows ask for a {predicts}; scores of such rows: "
            f"{', '.join(possible)}",
            "scores",
        )
    if score.num_samples > num_samples:
        message = f"the score {name} needs samples of each row: set samples: {{count: {score.num_samples}}}"
        raise OptionError(message, "scores")
    if score.package and importlib.util.find_spec(score.package.replace("-", "_")) is None:
        extra = _EXTRAS[score.package]
        fix = f"install it with: pip install -e '.[{extra}]', in a clone of rld"
        raise OptionError(f"the score {name} needs {score.package}; {fix}", "scores")


def _possible(predicts: Predicts) -> list[str]:
    return [name for name, score in SCORES.items() if score.predicts == predicts]
