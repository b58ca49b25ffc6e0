"""Whether two tokenizers give the same ids, told without having both at hand."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedTokenizerBase

# Texts whose tokens tell tokenizers apart: words, digits, code, white space, other scripts.
PROBES = ("The quick brown fox jumps over 13 lazy dogs.", "def f(x):\n    return x ** 2", "Ünïcode 漢字 🙂", "a b=c:d")


def probe_ids(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of each of `PROBES`."""
    return [tokenizer.encode(text, add_special_tokens=False) for text in PROBES]


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells a vocabulary from others: a hash of its tokens with their ids, and of the ids of `PROBES`.

    Added tokens are left out, because a base model and its instruct sibling differ in them.
    """
    added = tokenizer.added_tokens_decoder
    own = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i not in added)
    return hashlib.sha256(json.dumps([own, probe_ids(tokenizer)]).encode()).hexdigest()[:16]
