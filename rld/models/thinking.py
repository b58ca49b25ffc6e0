"""The thinking part in front of an answer, and the answer without it.

A chat template may open the thinking part itself, in the prompt, as that of DeepSeek-R1 does; a completion then has
only the marker that closes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

StripThinking: TypeAlias = "bool | Sequence[str]"
"""Whether answers are read without their thinking part; or the two markers around it."""


class Thinking(NamedTuple):
    """The texts around a thinking part."""

    opening: str
    closing: str

    def opened_by(self, prompt: str) -> bool:
        """Tell whether a rendered prompt ends inside a thinking part that it opens."""
        return prompt.rstrip().endswith(self.opening)

    def answer(self, completion: str, is_open: bool) -> str:
        """Return a completion behind its last thinking part; "" where that part has no end.

        Args:
            completion: The text, markers included.
            is_open: Whether the prompt opens the thinking part.
        """
        _, closing, behind = completion.rpartition(self.closing)
        if not closing and is_open:
            return ""
        answer, opening, _ = behind.partition(self.opening)
        return answer.strip() if closing or opening else completion

    def whole(self, completion: str, is_open: bool) -> str:
        """Return a completion with the marker that opens its thinking part, also where that is in the prompt."""
        return f"{self.opening}\n{completion.lstrip()}" if is_open and self.closing in completion else completion

    def behind(self, completion: str, is_open: bool) -> str:
        """Return a completion as it stands behind a prompt: without the opening marker where that is in the prompt."""
        is_repeated = is_open and completion.lstrip().startswith(self.opening)
        return completion.lstrip().removeprefix(self.opening).lstrip() if is_repeated else completion

    def occurs_in(self, completion: str) -> bool:
        """Tell whether a completion has a marker of a thinking part."""
        return self.opening in completion or self.closing in completion


MARKERS = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    Thinking("<|channel>thought", "<channel|>"),
    Thinking("<thinking>", "</thinking>"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<reasoning>", "</reasoning>"),
)
"""Those of public chat templates, the most frequent first."""


def markers(option: StripThinking, template: str | None) -> Thinking | None:
    """Return the markers that an option means: those it names, or for True those that the template has.

    Without a template, or where it has none of `MARKERS`, they are the first of these.
    """
    if not isinstance(option, bool):
        return Thinking(*option)
    return of_template(template) or MARKERS[0] if option else None


def of_template(template: str | None) -> Thinking | None:
    """Return the markers of a template; None if it has none of `MARKERS`."""
    return next((pair for pair in MARKERS if template and pair.closing in template), None)
