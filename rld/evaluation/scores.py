"""The scores that a skill may have, by name. To add one, write its metric in `metrics/` and an entry of `SCORES`.

A score is computed from a skill's held-out rows and what a model predicts for them. This module computes nothing, so
that a recipe is checked without the libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rld.evaluation.predictions import Prediction
from rld.types import Predicts, Row
from rld.utils.suggestions import hint


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
    """

    meaning: str
    predicts: Predicts
    metric: str
    columns: Callable[[Row, Prediction], dict[str, Any]]
    options: Mapping[str, Any] = MappingProxyType({})
    is_share: bool = True
    needs_gold: bool = True


def _reward(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"predictions": prediction.reward}


def _texts(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"predictions": prediction.scored, "references": row["answer"]}


def _labels(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"predictions": prediction.answer, "references": row["answer"]}


def _nats_of_bytes(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"nats": prediction.nats, "sizes": prediction.num_bytes}


def _nats_of_tokens(row: Row, prediction: Prediction) -> dict[str, Any]:
    return {"nats": prediction.nats, "sizes": prediction.num_tokens}


SCORES: dict[str, Score] = {
    "solved": Score("share of answers that the judge calls correct", "text", "solved", _reward, needs_gold=False),
    "exact_match": Score(
        "share of answers that are the gold answer, up to white space around them", "text", "exact_match", _texts
    ),
    "accuracy": Score("share of rows whose likeliest label is the gold one", "label", "accuracy", _labels),
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
"""The scores by their name in a recipe."""

DEFAULT_SCORES: Mapping[Predicts, tuple[str, ...]] = {
    "text": ("solved",),
    "label": ("accuracy",),
    "likelihood": ("byte_probability", "nats_per_byte", "perplexity"),
}
"""The scores of a skill that names none, its main score first."""


def require_scores(names: Sequence[str], predicts: Predicts) -> None:
    """Check that a skill may have scores, the first of them as its main score.

    Raises:
        ValueError: it may not; the message says why.
    """
    possible = [name for name, score in SCORES.items() if score.predicts == predicts]
    for i, name in enumerate(names):
        if name not in SCORES:
            raise ValueError(f"there is no score {name!r}{hint(name, possible)}")
        if name not in possible:
            raise ValueError(
                f"the score {name} is of a {SCORES[name].predicts}, and these rows ask for a {predicts}; scores of "
                f"such rows: {', '.join(possible)}"
            )
        if name in names[:i]:
            raise ValueError(f"the score {name} is named twice")
    if names and not SCORES[names[0]].is_share:
        shares = ", ".join(name for name in possible if SCORES[name].is_share)
        raise ValueError(
            f"the first score is the skill's main one, which is between 0 and 1 and better where it is larger, and "
            f"{names[0]} is not; put one of these first: {shares}"
        )
