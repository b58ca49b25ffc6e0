"""Byte-level and SentencePiece-like tokenizers of a few hundred tokens, trained in milliseconds on a made-up corpus."""

from __future__ import annotations

import functools
import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is the sum of 7 and 5? The answer is 12, and Yes, it is! No, it isn't.",
    "How much is 3 - 8? -5 or -5.25; what is the answer to the question: 1,024 / 2 = 512, 69 / 3 = 23 + 0.",
    "Where do people drink coffee? In a café, in a naïve crème brûlée house; what else?",
    "The quick brown fox jumps over 13 lazy dogs. user system assistant model Answer: Question:",
    "def f(x):\n    return x ** 2\n\nBe brief. Is this answer right? Answer with Yes or No.",
] * 3
"""Texts that the tokenizers are trained on: without CJK and emoji, which are therefore spelt in bytes."""


def _wrapped(backend: Tokenizer, special: tuple[Any, ...], plain: tuple[str, ...] = (), **options: Any) -> Any:
    """Add tokens behind the vocabulary, special and other ones, and make a tokenizer of transformers."""
    backend.add_special_tokens(list(special))
    backend.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **options)


def _with_bos(backend: Tokenizer, bos: str) -> None:
    """Put `bos` before every text."""
    backend.add_special_tokens([bos])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )


@functools.cache
def _trained_byte_level(*further: str) -> str:
    """Train byte-level BPE as of GPT-2, Qwen and SmolLM, digits one by one, and return it in JSON."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*CORPUS, *further], trainer)
    return backend.to_str()


def byte_level(
    *special: str,
    plain: tuple[str, ...] = (),
    normalizer: Any = None,
    bos: str | None = None,
    space: bool = False,
    further: tuple[str, ...] = (),
    **options: Any,
) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer.

    Args:
        special: Special tokens, behind the vocabulary.
        plain: Added tokens that are not special.
        normalizer: Of the text.
        bos: A token that the tokenizer puts before every text.
        space: Whether the tokenizer puts a space before every text.
        further: Texts to train on beside `CORPUS`.
        options: Of `PreTrainedTokenizerFast`.
    """
    backend = Tokenizer.from_str(_trained_byte_level(*further))
    if normalizer is not None:
        backend.normalizer = normalizer
    if space:
        parts = [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if bos is not None:
        _with_bos(backend, bos)
        options["bos_token"] = bos
    tokenizer: PreTrainedTokenizerFast = _wrapped(backend, special, plain, **options)
    return tokenizer


_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


@functools.cache
def _trained_sentencepiece(kind: str, first: tuple[str, ...]) -> str:
    """Train a model of SentencePiece's kind: `first`, then a token for each byte, then pieces with ▁ for a space."""
    backend = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    backend.normalizer = normalizers.Replace(" ", "▁")
    options: dict[str, Any] = {"special_tokens": [*first, *_BYTE_TOKENS], "show_progress": False}
    if kind == "bpe":
        parts = [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(True),
        ]
        backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
        trainer: Any = trainers.BpeTrainer(vocab_size=520, **options)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        trainer = trainers.UnigramTrainer(vocab_size=480, unk_token="<unk>", **options)
    backend.train_from_iterator([" " + text for text in CORPUS], trainer)
    definition = json.loads(backend.to_str())
    added = [token for token in definition["added_tokens"] if token["content"] not in _BYTE_TOKENS]
    definition["model"] |= {"byte_fallback": True} | ({"unk_token": "<unk>", "fuse_unk": True} if kind == "bpe" else {})
    return json.dumps(definition | {"added_tokens": added, "pre_tokenizer": None, "normalizer": None})


def sentencepiece(
    *special: Any,
    kind: str = "bpe",
    first: tuple[str, ...] = ("<unk>", "<s>", "</s>"),
    dummy: str = "text",
    bos: str | None = None,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """Build a tokenizer of SentencePiece's shape: byte tokens first, ▁ for a space.

    Args:
        special: Special tokens, behind the vocabulary.
        kind: `bpe` or `unigram`.
        first: Special tokens in front of the byte tokens.
        dummy: Where a space is put in front: `text` (each text between special tokens, as in Llama 2 and Phi 3),
            `first` (only the first one) or `none` (Gemma).
        bos: A token that the tokenizer puts before every text.
        options: Of `PreTrainedTokenizerFast`.
    """
    backend = Tokenizer.from_str(_trained_sentencepiece(kind, first))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        prepended = [normalizers.Prepend("▁")] if dummy == "text" else []
        backend.normalizer = normalizers.Sequence([*prepended, normalizers.Replace(" ", "▁")])
    if dummy != "none":
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    if bos is not None:
        _with_bos(backend, bos)
        options["bos_token"] = bos
    tokenizer: PreTrainedTokenizerFast = _wrapped(backend, special, unk_token="<unk>", **options)
    return tokenizer
