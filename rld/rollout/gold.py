"""Gold answers as completions."""

from __future__ import annotations

from collections.abc import Sequence

from rld.errors import DataError
from rld.models.prompting import PromptEncoder
from rld.types import Row


def gold_completions(rows: Sequence[Row], encoder: PromptEncoder, max_tokens: int | None) -> list[list[int]]:
    """Return each row's gold answer as the token ids of the completion by which the model would give it.

    One that `is_cut` goes on in another row, and has no end token.

    Args:
        rows: Rows with a `prompt` and an `answer`.
        encoder: The model's.
        max_tokens: Greatest length of a completion, the end token included. None: any length.

    Raises:
        DataError: a row has no answer, or one that the model cannot write.
    """
    completions = []
    for i, row in enumerate(rows):
        answer = row.get("answer")
        if not isinstance(answer, str):
            raise DataError(f"row {i} of a rollout has no text in its column 'answer', which gold completions need")
        problem = encoder.problem(row["prompt"], answer, max_tokens)
        if problem is not None:
            raise DataError(f"gold completions: {problem}; its prompt is {str(row['prompt'])[:80]!r}")
        ids = encoder.encode_completion(row["prompt"], answer)
        completions.append(ids[:-1] if row.get("is_cut") else ids)
    return completions
