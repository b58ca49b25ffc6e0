"""Prompts as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
)

from rld.types import Row


def tokens(tokenizer: PreTrainedTokenizerBase, prompt: Any, chat_options: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids of a prompt, a chat ready to be answered."""
    encoded: Any = (
        tokenizer(prompt)
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, **(chat_options or {}))
    )
    ids: list[int] = encoded["input_ids"]
    return ids


def num_tokens(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    answers: Sequence[Sequence[int]],
    chat_options: Mapping[str, Any] | None = None,
) -> int:
    """Tokens that a model reads and writes to answer rows: of their prompts, and of the answers' token ids."""
    return sum(len(tokens(tokenizer, row["prompt"], chat_options)) for row in rows) + sum(map(len, answers))
