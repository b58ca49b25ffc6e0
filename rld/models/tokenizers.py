"""The character tokenizer, and tests of whether two tokenizers give the same ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rld.errors import DataError
from rld.types import Row


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per character, and `<pad>`, `<eos>` and `<unk>`.

    Raises:
        DataError: a character occurs twice.
    """
    repeated = [character for i, character in enumerate(characters) if character in characters[:i]]
    if repeated:
        raise DataError(f"tokenizer.characters has {repeated[0]!r} twice")
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def require_known(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row]) -> None:
    """Check that a character tokenizer has all characters of the rows' prompts and answers.

    Raises:
        DataError: it lacks some. The message names them, and a skill and text that has one.
    """
    vocabulary = set(tokenizer.get_vocab())
    for row in rows:
        text = f"{row['prompt']}{row['answer']}"
        missing = sorted(set(text) - vocabulary)
        if missing:
            raise DataError(
                f"tokenizer.characters lacks {''.join(missing)!r}, which skill {row['skill']!r} has in {text!r:.80}"
            )


PROBES = ("The quick brown fox jumps over 13 lazy dogs.", "def f(x):\n    return x ** 2", "Ünïcode 漢字 🙂", "a b=c:d")
"""Texts on which tokenizers differ: words, digits, code, white space, other scripts."""


def probe_ids(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of each of `PROBES`."""
    return [tokenizer.encode(text, add_special_tokens=False) for text in PROBES]


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a vocabulary: of its tokens with their ids, and of the ids of `PROBES`.

    Added tokens are left out, because a base model and its instruct sibling differ in them.
    """
    added = tokenizer.added_tokens_decoder
    tokens = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i not in added)
    return hashlib.sha256(json.dumps([tokens, probe_ids(tokenizer)]).encode()).hexdigest()[:16]
