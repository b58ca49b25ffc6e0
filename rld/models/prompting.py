"""A tokenizer and the options of its chat template, as one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from rld.types import Row


@dataclass(frozen=True)
class PromptEncoder:
    """Converts prompts to token ids and completions to text.

    Args:
        tokenizer: The tokenizer of the model that reads the prompts.
        chat_options: Further arguments of the chat template, such as `enable_thinking`.
        chat_template: The chat template in Jinja. None: the tokenizer's own.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    def encode(self, prompt: Any) -> list[int]:
        """Return the token ids of a prompt: a text, or a list of messages that the assistant is to answer."""
        if isinstance(prompt, str):
            encoded: Any = self.tokenizer(prompt)
        else:
            encoded = self.tokenizer.apply_chat_template(
                prompt,
                chat_template=self.chat_template,
                add_generation_prompt=True,
                return_dict=True,
                **self.chat_options,
            )
        ids: list[int] = encoded["input_ids"]
        return ids

    def encode_answer(self, text: str) -> list[int]:
        """Return the token ids of an answer's text, without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Return the text of each completion, without special tokens."""
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def count_tokens(self, rows: Sequence[Row], answers: Sequence[Sequence[int]]) -> int:
        """Return the number of tokens that a model reads and writes when it answers rows.

        Args:
            rows: Rows with a `prompt`.
            answers: The token ids of each row's answer.
        """
        return sum(len(self.encode(row["prompt"])) for row in rows) + sum(map(len, answers))
