"""Alignment of two tokenizations of one text, by the bytes of each token.

A student and a teacher with different tokenizers have different tokens, but these spell the same bytes. Where both end
a token at the same byte, the tokens since the last such place form a span: the same text in two tokenizations, whose
likelihoods can be compared. Where both begin a token at the same byte, both predict from the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rld.errors import TeacherError

END = b"\xff"
"""The bytes of a token that ends a completion: no text in UTF-8 has them, so that ends match ends only."""

_SPACE = "\u2581"  # stands for a space in the tokens of SentencePiece's heirs

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")

_CONTEXTS = ("", "\n", "1", "a", ".", "-")
"""Texts in front of which a token's text is encoded; the last token differs with them where merges cross over."""


def token_bytes(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> list[bytes]:
    """Return the bytes of each token id, which may be a part of a character.

    Supported are byte-level tokenizers (GPT-2, Llama 3, Qwen, SmolLM), those with `▁` for a space and `<0xNN>` for
    bytes (Llama 2, Gemma), and those whose tokens are the text itself (characters, words).

    Args:
        tokenizer: A fast tokenizer.
        ends: The tokens that end a completion: they spell `END`, other special tokens nothing.

    Raises:
        TeacherError: the tokenizer's tokens cannot be read.
    """
    spelling = _spelling(tokenizer)
    added = tokenizer.added_tokens_decoder
    without_bytes = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    vocabulary = tokenizer.get_vocab()
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        if i in ends:
            pieces[i] = END
        elif i not in without_bytes:
            # a byte-level tokenizer looks for its added tokens in the text, so they are text already
            is_text = i in added and spelling is _byte_level
            data = token.encode() if is_text else spelling(token)
            pieces[i] = data.replace(END, b"\xfe")  # as invalid as END, and not an end
    return pieces


def _spelling(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the function from a tokenizer's tokens to bytes, which its decoder determines."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TeacherError(f"{type(tokenizer).__name__} is no fast tokenizer, so its tokens cannot be aligned")
    steps = list(_steps(json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}))
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds & {"ByteFallback", "Metaspace"} or any(step.get("pattern") == {"String": _SPACE} for step in steps):
        return _with_spaces
    if kinds <= {"Fuse"}:
        return str.encode
    raise TeacherError(
        f"tokens that are decoded with {', '.join(sorted(kinds))} cannot be read as bytes; align supports "
        "byte-level tokenizers, those with '\u2581' for a space, and plain ones"
    )


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "decoders" in decoder:
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder:
        yield decoder


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that stand for bytes in byte-level tokens: printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    # a token with a character from outside the alphabet is decoded as the text that it is
    return bytes(_BYTES[c] for c in token) if all(c in _BYTES for c in token) else token.encode()


def _with_spaces(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


def valid_text(data: bytes) -> str:
    """Return the text up to the first byte that is not valid UTF-8: an `END`, or a character that was cut short."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()


def spans(student: Sequence[bytes], teacher: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Number the shortest spans at whose end both tokenizations of a text end a token.

    Args:
        student: The bytes of each of the student's tokens.
        teacher: The bytes of each of the teacher's tokens. Alignment ends where the texts differ.

    Returns:
        The span of each of the student's and of the teacher's tokens, counted from 0; -1 for tokens without bytes and
        those behind the last span.
    """
    common_length = _common_length(b"".join(student), b"".join(teacher))
    common_ends = set(_offsets(student)[1:]) & set(_offsets(teacher)[1:])
    boundaries = {offset for offset in common_ends if 0 < offset <= common_length}
    return _numbered(student, boundaries), _numbered(teacher, boundaries)


def starts(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[int]:
    """Return for each student token the index of the teacher token that starts at the same byte, -1 if none does."""
    common_length = _common_length(b"".join(student), b"".join(teacher))
    index = {offset: i for i, (piece, offset) in enumerate(zip(teacher, _offsets(teacher), strict=False)) if piece}
    return [
        index.get(offset, -1) if piece and offset <= common_length else -1
        for piece, offset in zip(student, _offsets(student), strict=False)
    ]


def _offsets(pieces: Sequence[bytes]) -> list[int]:
    """Return where each token starts, and where the text ends."""
    offsets = [0]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return offsets


def _common_length(first: bytes, second: bytes) -> int:
    """Return the length of the longest common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])


def _numbered(pieces: Sequence[bytes], boundaries: set[int]) -> list[int]:
    """Return the number of the span between `boundaries` that each token lies in, or -1."""
    numbers, number, last = [], 0, max(boundaries, default=0)
    for piece, end in zip(pieces, _offsets(pieces)[1:], strict=True):
        numbers.append(number if piece and end <= last else -1)
        number += bool(piece) and end in boundaries
    return numbers


def ids_by_bytes(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[bytes]) -> dict[bytes, int]:
    """Return for all bytes that tokens spell the id of the token by which the tokenizer itself encodes them.

    Several tokens may spell the same: vocabularies of SentencePiece have a token `<0xNN>` for each byte, which they use
    only for characters that have no token, and an added token may spell what an ordinary one does. The texts of such
    tokens are encoded, alone and behind other text, because a tokenizer may put a space in front.

    Args:
        tokenizer: The tokenizer.
        pieces: The bytes of each of its tokens, empty for tokens without bytes.
    """
    candidates: dict[bytes, list[int]] = {}
    for i, piece in enumerate(pieces):
        if piece:
            candidates.setdefault(piece, []).append(i)
    return {piece: ids[0] if len(ids) == 1 else _encoded(tokenizer, piece, ids) for piece, ids in candidates.items()}


def _encoded(tokenizer: PreTrainedTokenizerBase, piece: bytes, candidates: Sequence[int]) -> int:
    """Return the one of the candidates, which all spell `piece`, that the tokenizer encodes it with."""
    text = valid_text(piece)
    for context in _CONTEXTS if text.encode() == piece else ():
        ids: list[int] = tokenizer(context + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if ids and ids[-1] in candidates:
            return ids[-1]
    names = tokenizer.convert_ids_to_tokens(list(candidates))  # a part of a character, or no text has it
    return next(
        (i for i, name in zip(candidates, names, strict=True) if not _BYTE_TOKEN.fullmatch(name)), candidates[0]
    )


def shared_vocabulary(student: Mapping[bytes, int], teacher: Mapping[bytes, int]) -> tuple[Tensor, Tensor]:
    """Pair the tokens that spell the same: ids `[V]` of the student's, ascending, and ids `[V]` of the teacher's.

    Args:
        student: The student's `ids_by_bytes`.
        teacher: The teacher's.
    """
    pairs = [(i, teacher[piece]) for piece, i in student.items() if piece in teacher]
    ids = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2)
    return ids[:, 0].contiguous(), ids[:, 1].contiguous()
