"""Gold answers as completions."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from rld.errors import DataError


def gold_completions(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, longest: int | None
) -> list[list[int]]:
    """Return each row's gold answer as a completion of at most `longest` tokens, the end included; None: any length.

    Raises:
        DataError: a row has no answer.
    """
    answers = [row.get("answer") for row in rows]
    for i, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise DataError(f"row {i} of a rollout has no text in its column 'answer', which gold completions need")
    ids = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    return [[*tokens, tokenizer.eos_token_id][:longest] for tokens in ids]
