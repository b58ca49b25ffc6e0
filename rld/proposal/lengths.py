"""How long rows are in the student's tokens, which of them cannot be used, and how their answers can be verified."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from rld.data.items import Item
from rld.data.row_kinds import RowReader
from rld.errors import RecipeError
from rld.proposal.models import Model
from rld.proposal.survey import Survey, records
from rld.recipe import registry
from rld.recipe.sizes import Lengths

_NUM_SAMPLED = 500
"""Rows whose mean length is taken for that of all."""

_NUM_CHARACTERS = 200_000
"""Characters of documents by which the tokens of all are estimated."""

BLOCK = 256
"""Tokens of a block of documents: the default of a skill."""

_NUM_LONGEST = 100
"""Rows with the most characters, among which those with the most tokens are looked for."""

_SHORT_ANSWER = 40
"""Characters up to which an answer is compared as a whole."""

_CHAT_TOKENS = 24
"""About what a chat template writes around a question and an instruction."""


Encode: TypeAlias = Callable[[str], list[int]]
"""Returns the token ids of an answer."""


@dataclass(frozen=True)
class Measured:
    """The rows of a skill, as its kind reads them.

    Attributes:
        num_items: Rows with something to learn: of conversations their answers, of documents their blocks, about.
        num_documents: Documents; 0 where rows are none.
        num_rejected: Rows that cannot be used.
        first_rejected: The first of them, with the reason.
        lengths: Mean numbers of tokens of prompts and answers.
        longest_answer: Tokens, the end included.
        longest_prompt: Tokens.
        verifier: A reward that can tell correct answers. None: answers are too free.
    """

    num_items: int
    num_documents: int
    num_rejected: int
    first_rejected: str
    lengths: Lengths
    longest_answer: int
    longest_prompt: int
    verifier: str | None


def measure(rows: Survey, reader: RowReader, student: Model) -> Measured:
    """Read all rows as their kind.

    Raises:
        RecipeError: no row is of the kind.
    """
    sample, num_rejected, first_rejected = _Sample(), 0, ""
    for record in records(rows.source):
        try:
            items = [item for item, _ in reader.items(record.values)]
        except ValueError as error:
            num_rejected += 1
            first_rejected = first_rejected or f"{record.place}: {error}"
            continue
        for item in items:
            sample.add(item)
    if not sample.num_items:
        raise RecipeError(f"{rows.source}: none of its rows can be used; the first: {first_rejected}")
    of_kind = _measured_documents if sample.items[0].is_document else _measured_answers
    return of_kind(sample, student.encoder.encode_answer, num_rejected, first_rejected)


class _Sample:
    """Some items of all rows, each as likely as any other, and those with the longest texts."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.num_items = self.num_characters = 0
        """Of all rows."""
        self.long_answers: list[tuple[int, int, str]] = []
        self.long_prompts: list[tuple[int, int, str]] = []
        self._rng = random.Random(0)

    def add(self, item: Item) -> None:
        """Count an item, and keep it with the probability with which all earlier ones were kept."""
        self.num_items += 1
        self.num_characters += len(item.question)
        if not item.is_document:
            _keep(self.long_answers, self.num_items, item.answer or "")
            _keep(self.long_prompts, self.num_items, _prompt(item))
        place = self.num_items - 1 if self.num_items <= _NUM_SAMPLED else self._rng.randrange(self.num_items)
        if place < _NUM_SAMPLED:
            self.items[place : place + 1] = [item]


def _measured_documents(sample: _Sample, encode: Encode, num_rejected: int, first_rejected: str) -> Measured:
    beginnings = "".join(item.question[: _NUM_CHARACTERS // len(sample.items) + 1] for item in sample.items)
    num_tokens = sample.num_characters * len(encode(beginnings)) / len(beginnings)
    num_blocks = sample.num_items + round(num_tokens / BLOCK)
    lengths = Lengths(1, 1 + num_tokens / num_blocks, num_blocks)
    return Measured(num_blocks, sample.num_items, num_rejected, first_rejected, lengths, BLOCK, 0, None)


def _measured_answers(sample: _Sample, encode: Encode, num_rejected: int, first_rejected: str) -> Measured:
    items, num_items = sample.items, sample.num_items
    answers = [item.answer for item in items if item.answer]
    prompt = fmean(len(encode(_prompt(item))) for item in items) + _CHAT_TOKENS
    answer = 1 + fmean([len(encode(answer)) for answer in answers] or [0.0])
    mean = Lengths(prompt, answer, num_items, num_items * len(answers) / len(items))
    texts_by_part = sample.long_answers, sample.long_prompts
    longest = [max((len(encode(text)) for *_, text in texts), default=0) for texts in texts_by_part]
    sizes = longest[0] + 1, longest[1] + _CHAT_TOKENS
    return Measured(num_items, 0, num_rejected, first_rejected, mean, *sizes, _verifier(answers))


def _keep(longest: list[tuple[int, int, str]], number: int, text: str) -> None:
    """Keep a text if it is one of the longest, by characters."""
    if len(longest) < _NUM_LONGEST:
        heapq.heappush(longest, (len(text), number, text))
    elif len(text) > longest[0][0]:
        heapq.heapreplace(longest, (len(text), number, text))


def _prompt(item: Item) -> str:
    """Return the text of a prompt; the roles of its messages are counted by `_CHAT_TOKENS` alone."""
    if item.messages:
        return "\n".join(str(message["content"]) for message in item.messages)
    return item.question


def _verifier(answers: Sequence[str]) -> str | None:
    """Return a shipped reward that can tell correct answers such as these; None where none of these can."""
    if not answers:
        return None
    longest = max(map(len, answers))
    final_number = registry.load("rewards", "answers:final_number", registry.folder("recipes"))
    has_number = [score is not None for score in final_number(list(answers), list(answers))]
    is_short_number = longest <= _SHORT_ANSWER and all(any(map(str.isdigit, answer)) for answer in answers)
    if fmean(has_number) > 0.95 and (all("####" in answer for answer in answers) or is_short_number):
        return "answers:final_number"
    return "answers:exact_match" if longest <= _SHORT_ANSWER else None
