"""Two tokenizers over one text: what each token spells, where tokens of both meet, and losses on what they share.

A student and a teacher with different tokenizers have different tokens, but these spell the same bytes. Where both end
a token at the same byte, the tokens since the last such place form a span: two ways of saying the same thing, whose
likelihoods can be compared. Where both begin a token at the same byte, both predict from the same text.

Shapes: M spans, V vocabulary; a leading `...` is any batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rld.errors import TeacherError

END = b"\xff"
"""What a token that ends a completion spells: a byte that no text in UTF-8 has, so that ends match ends only."""
_SPACE = "\u2581"  # stands for a space in the tokens of SentencePiece's heirs
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_CERTAIN = -1e-6  # the greatest log-probability of a span: at 0, log(1 - p) is infinite
_TAU = 100.0
_IMPOSSIBLE = -1e4  # the least of a teacher's: its exp is 0, but 0 times it is no NaN


# -- tokens as bytes ---------------------------------------------------------------------------------------------------


def token_bytes(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> list[bytes]:
    """Return the bytes that each token id stands for; half a character where a token is that.

    Understood are byte-level tokenizers (GPT-2, Llama 3, Qwen, SmolLM), those with `▁` for a space and `<0xNN>` for
    bytes (Llama 2, Gemma), and those whose tokens are the text itself (characters, words).

    Args:
        tokenizer: A fast tokenizer.
        ends: The tokens that end a completion: they spell `END`, other special tokens nothing.

    Raises:
        TeacherError: the tokenizer's tokens cannot be read.
    """
    spelling = _spelling(tokenizer)
    added = tokenizer.added_tokens_decoder
    silent = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    vocabulary = tokenizer.get_vocab()
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        if i in ends:
            pieces[i] = END
        elif i not in silent:
            # a byte-level tokenizer looks for its added tokens in the text, so they are text already
            literal = i in added and spelling is _byte_level
            pieces[i] = (token.encode() if literal else spelling(token)).replace(END, b"\xfe")  # as invalid, not an end
    return pieces


def _spelling(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the function from a tokenizer's tokens to bytes, told by its decoder."""
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
        f"tokens that are decoded with {', '.join(sorted(kinds))} cannot be read as bytes; align understands "
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


# -- alignment ---------------------------------------------------------------------------------------------------------


def spans(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Number the shortest spans at whose end both tokenizations of a text end a token.

    Args:
        ours, theirs: The bytes of each token. Where the texts come to differ, alignment ends.

    Returns:
        Each token's span for both sides, counted from 0; -1 for tokens without bytes and those behind the last span.
    """
    agreed = _agreed(b"".join(ours), b"".join(theirs))
    common = set(_offsets(ours)[1:]) & set(_offsets(theirs)[1:])
    boundaries = {offset for offset in common if 0 < offset <= agreed}
    return _numbered(ours, boundaries), _numbered(theirs, boundaries)


def starts(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[int]:
    """Return for each of our tokens the index of their token that starts at the same byte of the same text, or -1."""
    agreed = _agreed(b"".join(ours), b"".join(theirs))
    index = {offset: i for i, (piece, offset) in enumerate(zip(theirs, _offsets(theirs), strict=False)) if piece}
    return [
        index.get(offset, -1) if piece and offset <= agreed else -1
        for piece, offset in zip(ours, _offsets(ours), strict=False)
    ]


def _offsets(pieces: Sequence[bytes]) -> list[int]:
    """Return where each token starts, and at last where the text ends."""
    offsets = [0]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return offsets


def _agreed(ours: bytes, theirs: bytes) -> int:
    """Return how many bytes two texts have in common at their start."""
    length = min(len(ours), len(theirs))
    if ours[:length] == theirs[:length]:
        return length
    return next(i for i in range(length) if ours[i] != theirs[i])


def _numbered(pieces: Sequence[bytes], boundaries: set[int]) -> list[int]:
    numbers, number, last = [], 0, max(boundaries, default=0)
    for piece, end in zip(pieces, _offsets(pieces)[1:], strict=True):
        numbers.append(number if piece and end <= last else -1)
        number += bool(piece) and end in boundaries
    return numbers


def shared_vocabulary(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Pair the tokens that spell the same: ids `[V]` of ours, ascending, and the ids `[V]` of theirs.

    Of several tokens that spell the same on one side, the first counts; tokens without bytes have no partner.
    """
    first_of_theirs, first_of_ours = _first(theirs), _first(ours)
    pairs = [(i, first_of_theirs[piece]) for piece, i in first_of_ours.items() if piece in first_of_theirs]
    ids = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2)
    return ids[:, 0].contiguous(), ids[:, 1].contiguous()


def _first(pieces: Sequence[bytes]) -> dict[bytes, int]:
    return {piece: i for i, piece in reversed(list(enumerate(pieces))) if piece}


# -- losses ------------------------------------------------------------------------------------------------------------


def span_likelihood(ours_log_p: Tensor, theirs_log_p: Tensor, temperature: float) -> Tensor:
    """Binary KL of the student from the teacher on each span: ALM.

    With p = exp(log_p / tau) on each side, `p_t log(p_t / p_s) + (1 - p_t) log((1 - p_t) / (1 - p_s))`, the forward KL
    between "this span" and "any other" (Minixhofer et al. 2025, Universal Cross-Tokenizer Distillation via Approximate
    Likelihood Matching). It is at least 0, and 0 only for equal likelihoods.

    Args:
        ours_log_p: `[..., M]`, the student's log-probability of each span, at most 0; gradients flow to it.
        theirs_log_p: `[..., M]`, the teacher's, detached.
        temperature: tau, above 0; a large one brings out differences between unlikely spans.

    Returns:
        `[..., M]`, in nats.
    """
    student = _tempered(ours_log_p, temperature)
    teacher = _tempered(theirs_log_p.detach().clamp(min=_IMPOSSIBLE), temperature)
    chosen = teacher.exp() * (teacher - student)
    others = -teacher.expm1() * (_log_complement(teacher) - _log_complement(student))
    return chosen + others


def span_gaps(log_p_BT: Tensor, spans_BT: Tensor, theirs_BT: Tensor) -> Tensor:
    """The student's distance from a teacher on each span of text, `[B, T]`, placed at the span's first token.

    It is `tau * span_likelihood` with tau = 100, the paper's choice. The factor keeps it in nats whatever tau: for a
    large one it tends to `a log(a / b) + b - a` with a and b minus the log-likelihoods by teacher and student.

    Args:
        log_p_BT: The student's log-probability of each sampled token; gradients flow to it.
        spans_BT: The span of each token, -1 for none.
        theirs_BT: At j the teacher's log-probability of span j.
    """
    inside_BT = spans_BT >= 0
    index_BT = spans_BT.clamp(min=0)
    kept_BT = log_p_BT.masked_fill(~inside_BT, 0.0)
    ours_BT = torch.zeros_like(kept_BT).scatter_add(1, index_BT, kept_BT)
    gaps_BT = _TAU * span_likelihood(ours_BT, theirs_BT, _TAU)
    first_BT = inside_BT & (spans_BT != spans_BT.roll(1, dims=1))
    first_BT[:, 0] = inside_BT[:, 0]
    return gaps_BT.gather(1, index_BT).masked_fill(~first_BT, 0.0)


def _tempered(log_p: Tensor, temperature: float) -> Tensor:
    """log p / tau, kept below 0 in value; the gradient is let through, because a sure student can still be wrong."""
    scaled = (log_p if log_p.dtype == torch.float64 else log_p.float()) / temperature
    return scaled - (scaled - _CERTAIN).clamp(min=0).detach()


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)) without loss of digits (Maechler 2012); `log_p` is below 0."""
    near = log_p > -0.6931471805599453  # 1 - exp is small there: each branch gets safe values where it isn't chosen
    small = torch.log(-torch.expm1(torch.where(near, log_p, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near, -1.0, log_p)))
    return torch.where(near, small, large)


def sorted_difference(student_rest: Tensor, teacher_rest: Tensor) -> Tensor:
    """L1 distance of two lists of probabilities `[..., V]`, each sorted from great to small: ULD.

    Tokens that the other vocabulary lacks can still be compared by the shape of their distribution (Boizard et al.
    2024, Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs). The shorter list is
    padded with zeros. Gradients flow to the student's.

    Returns:
        `[...]`, in [0, 2] for distributions.
    """
    size = max(student_rest.shape[-1], teacher_rest.shape[-1])
    ours, theirs = (
        torch.nn.functional.pad(rest.sort(dim=-1, descending=True).values, (0, size - rest.shape[-1]))
        for rest in (student_rest, teacher_rest.detach())
    )
    return (ours - theirs).abs().sum(-1)
