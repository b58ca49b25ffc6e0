"""Cuts documents into pieces that a model reads one at a time."""

from __future__ import annotations

from collections.abc import Iterator

from rld.errors import DataError
from rld.models.prompting import PromptEncoder


def cut_text(encoder: PromptEncoder, text: str, size: int) -> list[str]:
    """Return the pieces of a text, which make it up when they are joined.

    A piece ends before white space where there is some in its second half, so that most tokenizers spell the pieces as
    they spell the whole text.

    Args:
        encoder: The model's.
        text: The text.
        size: The most tokens of a piece with the token in front of it and the end token, at least 4.

    Raises:
        DataError: the tokenizer does not tell which characters its tokens stand for, or one character takes more
            tokens.
    """
    if not encoder.tokenizer.is_fast:
        name = encoder.tokenizer.name_or_path
        raise DataError(
            f"the tokenizer {name!r} does not say where its tokens are in a text; take a fast one of its kind"
        )
    limit = size - len(encoder.start) - 1
    starts = _token_starts(encoder, text)
    pieces = list(_cut(text, starts, limit))
    counts = [len(ids) for _, ids in encoder.encode_rows([""] * len(pieces), pieces)]
    whole = []
    for piece, count in zip(pieces, counts, strict=True):
        whole += [piece] if count <= limit else _halves(encoder, piece, limit)
    return whole


def _token_starts(encoder: PromptEncoder, text: str) -> list[int]:
    """Return the character at which each token of a text starts, in ascending order."""
    spans = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return [start for start, _ in spans]


def _cut(text: str, starts: list[int], limit: int) -> Iterator[str]:
    """Yield pieces of at most `limit` of the text's tokens."""
    begin, first = 0, 0
    while len(starts) - first > limit:
        end = starts[first + limit]
        cut = next((i for i in range(end, begin + (end - begin) // 2, -1) if _is_gap(text, i)), end)
        cut = cut if cut > begin else begin + 1  # a character of many tokens
        yield text[begin:cut]
        begin = cut
        while first < len(starts) and starts[first] < begin:
            first += 1
    yield text[begin:]


def _is_gap(text: str, i: int) -> bool:
    """Whether white space begins at a character."""
    return text[i].isspace() and not text[i - 1].isspace()


def _halves(encoder: PromptEncoder, piece: str, limit: int) -> list[str]:
    """Return the parts of a piece that takes more tokens by itself than in its text."""
    count = len(encoder.encode_with("", piece)[1])
    if count <= limit:
        return [piece]
    if len(piece) == 1:
        raise DataError(f"the character {piece!r} takes {count} tokens, and a row has room for {limit}; raise block")
    middle = len(piece) // 2
    return [part for half in (piece[:middle], piece[middle:]) for part in _halves(encoder, half, limit)]
