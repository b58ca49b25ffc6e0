"""Gold answers as completions."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rld.errors import DataError
from rld.types import Row


def gold_completions(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_tokens: int | None
) -> list[list[int]]:
    """Return each row's gold answer as the token ids of a completion that ends.

    Args:
        rows: Rows with an `answer`.
        tokenizer: The student's.
        max_tokens: Greatest length of a completion, the end token included; a longer one is cut. None: any length.

    Raises:
        DataError: a row has no answer.
    """
    answers = [row.get("answer") for row in rows]
    for i, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise DataError(f"row {i} of a rollout has no text in its column 'answer', which gold completions need")
    ids = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    return [[*tokens, tokenizer.eos_token_id][:max_tokens] for tokens in ids]
