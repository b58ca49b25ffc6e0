"""What rewards say of completions in words, by TRL's `log_extra("feedback", texts)`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rld.errors import RewardError
from rld.utils.control_characters import encodable
from rld.utils.templates import rollout_fields

FEEDBACK = "feedback"
"""The column of `log_extra` that holds it: for each completion a text, or None where there is nothing to say."""

_MOST_CHARACTERS = 2000
"""Of a completion's feedback that a teacher reads; a prompt of any length would not fit into its context."""


def log_nothing(*_: Any, **__: Any) -> None:
    """Stand in for TRL's `log_extra` and `log_metric`: the text is not a completion of a rollout."""


class FeedbackLog:
    """Collects the feedback of all rewards on the same completions.

    Args:
        is_read: Whether a teacher reads it, so that what is no feedback is an error.
    """

    def __init__(self, is_read: bool) -> None:
        self._is_read, self._num_completions = is_read, 0
        self._column: list[str | None] | None = None

    @classmethod
    def of_prompts(cls, prompts: Iterable[str | None]) -> FeedbackLog:
        """Return the log for teachers with these templates of prompts, which may show it; None: the student's."""
        return cls(is_read=any(FEEDBACK in rollout_fields(prompt) for prompt in prompts))

    def begin(self, num_completions: int) -> None:
        """Begin anew, with so many completions."""
        self._num_completions, self._column = num_completions, None

    def add(self, values: Any) -> list[str | None] | None:
        """Add what one reward says of each completion.

        Returns:
            What all rewards say so far, the column of TRL's table of completions; None where `values` is no feedback.

        Raises:
            RewardError: it is none, and a teacher reads it.
        """
        is_list = isinstance(values, list | tuple) and len(values) == self._num_completions
        if is_list and all(value is None or isinstance(value, str) for value in values):
            values = [None if value is None else encodable(value) for value in values]
            before = self._column if self._column is not None else [None] * len(values)
            self._column = [_joined(*pair) for pair in zip(before, values, strict=True)]
            return list(self._column)
        if self._is_read:
            number = f"{len(values)} values, " if isinstance(values, list | tuple) else ""
            raise RewardError(
                f"log_extra('{FEEDBACK}', ...) should get one text per completion, or None where there is nothing to "
                f"say, and not {number}{values!r:.80}"
            )
        return None

    def texts(self) -> list[str] | None:
        """Return what a teacher reads of each completion, "" where nothing is said; None if no reward said anything."""
        if self._column is None:
            return None
        return [(text or "").strip()[:_MOST_CHARACTERS] for text in self._column]


def attempt_text(completion: Any) -> str:
    """Return the text of a completion: of messages that of the assistant's last one."""
    if isinstance(completion, str):
        return completion.strip()
    contents = [message.get("content") for message in completion if message.get("role") == "assistant"]
    return str(contents[-1] or "").strip() if contents else ""


def _joined(before: str | None, text: str | None) -> str | None:
    """Return what two rewards say of a completion, each on lines of its own, the same only once."""
    if not before or not text or before == text:
        return before or text
    return f"{before}\n{text}"
