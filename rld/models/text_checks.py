"""Checks of documents against a tokenizer and a context, without a model's weights."""

from __future__ import annotations

from collections.abc import Sequence

from rld.models.prompting import PromptEncoder
from rld.models.row_checks import Finding, FindingKind
from rld.models.text_forms import normal
from rld.types import Row
from rld.utils.control_characters import has_surrogate

_NUM_CHARACTERS = 200_000
"""Characters at the beginning of a document that are encoded and decoded; of the others each different one is."""


def check_texts(
    encoder: PromptEncoder, rows: Sequence[Row], blocks: Sequence[int], context_length: int | None
) -> list[Finding]:
    """Return what keeps a model from reading documents token by token.

    Args:
        encoder: The model's.
        rows: A row for each document, with the text as its answer.
        blocks: The most tokens that are read at once of each document.
        context_length: Positions that the model knows. None: any number.
    """
    problems: dict[FindingKind, dict[int, str]] = {}
    for i, (row, block) in enumerate(zip(rows, blocks, strict=True)):
        if context_length is not None and block > context_length:
            example = f"is read in blocks of {block} tokens, which do not fit into a context of {context_length}"
            problems.setdefault("block too long", {})[i] = example
        elif (problem := _problem(encoder, row["answer"])) is not None:
            problems.setdefault(problem[0], {})[i] = problem[1]
    return [
        Finding(kind, tuple(examples), len(rows), next(iter(examples.values()))) for kind, examples in problems.items()
    ]


def _problem(encoder: PromptEncoder, text: str) -> tuple[FindingKind, str] | None:
    """Return why a tokenizer cannot spell the characters of a text, or its beginning; None if it can."""
    characters = "".join(sorted(set(text)))
    if has_surrogate(characters):
        return "no text", "has half of a surrogate pair, which is no character"
    return _round_trip_problem(encoder, characters) or _round_trip_problem(encoder, text[:_NUM_CHARACTERS])


def _round_trip_problem(encoder: PromptEncoder, text: str) -> tuple[FindingKind, str] | None:
    """Return what a text loses when a tokenizer encodes and decodes it; None if nothing but white space around it."""
    round_trip = normal(encoder.decode([encoder.encode_answer(text)])[0])
    read = normal(text)
    if round_trip == read:
        return None
    missing = "".join(sorted({*read} - {*round_trip})[:20])
    if missing:
        return "unknown characters", f"has {missing!r}, which the tokenizer lacks"
    pairs = enumerate(zip(read, round_trip, strict=False))
    place = next((i for i, (before, after) in pairs if before != after), min(len(read), len(round_trip)))
    around = slice(max(place - 10, 0), place + 10)
    example = f"has {read[around]!r}, and the tokenizer reads and writes it as {round_trip[around]!r}"
    return "answer cannot be written", example
