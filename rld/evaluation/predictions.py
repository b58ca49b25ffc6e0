"""What a model says of one held-out row: the input of all scores, and a line of a file of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rld.types import Row


class Prediction(NamedTuple):
    """What a model says of a row."""

    answer: str = ""
    """Its answer, whole; of rows with labels the likeliest label; "" where a text is only read."""
    reward: float | None = None
    """What the judge gives to the answer, 1 for a correct one; None where no answer is asked for."""
    scored: str = ""
    """The part of the answer that scores read: without its thinking part, if the recipe leaves that out."""
    probabilities: Mapping[str, float] | None = None
    """Of rows with labels: the probability of each label; they sum to 1."""
    nats: float | None = None
    """Of a text: the sum of its tokens' negative log-probabilities."""
    num_bytes: int | None = None
    """Of a text: the bytes of UTF-8 that these tokens stand for."""
    sample_rewards: Sequence[float] | None = None
    """What the judge gives to answers that are sampled, if a score asks for them."""
    num_tokens: int = 0
    """Tokens that the model read and wrote; of a text those in `nats`."""

    def as_record(self, row: Row) -> dict[str, Any]:
        """Return the line of a file of predictions: the row, and what is known of it; JSON."""
        fields = {name: value for name, value in self._asdict().items() if value is not None}
        return {"skill": row["skill"], "prompt": row["prompt"], "gold": row["answer"], **fields}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Prediction:
        """Return the prediction of a line; the inverse of `as_record`."""
        fields = {name: record[name] for name in cls._fields if name in record}
        return cls(**fields)
