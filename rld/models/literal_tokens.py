"""Text in which the names of special tokens are text, beside special tokens that count.

A tokenizer finds the names of its special tokens wherever they stand: a question about `<|im_end|>` would end its turn.
Here the tokens that count get names that no text has, in the text and in a copy of the tokenizer.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rld.errors import DataError

_COUNTS, _BREAKS = "\ufdd0", "\ufdd1"
"""Characters that no text has: behind the first character of a token that counts, and of one that does not."""


def pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return what matches the name of a special token, the longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return _pattern(frozenset([*added, *tokenizer.all_special_tokens]))


@functools.lru_cache
def _pattern(names: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def broken(value: Any, names: re.Pattern[str]) -> Any:
    """Return a text, or what holds texts, with the names in it broken, so that no tokenizer finds them."""
    if isinstance(value, str):
        return names.sub(lambda name: name[0][0] + _BREAKS + name[0][1:], value)
    if isinstance(value, Mapping):
        return {key: broken(item, names) for key, item in value.items()}
    return [broken(item, names) for item in value] if isinstance(value, (list, tuple)) else value


def mended(text: str) -> str:
    """Return a text with the names whole again."""
    return text.replace(_BREAKS, "")


class LiteralTokenizer:
    """A copy of a tokenizer that finds special tokens only in texts of `counting`.

    Raises:
        DataError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError(
                f"{type(tokenizer).__name__} is no fast tokenizer, so a text that spells one of its special tokens "
                "cannot be told from the token; leave such rows out"
            )
        self._names = pattern(tokenizer)
        self._backend = Tokenizer.from_str(json.dumps(_renamed(json.loads(backend.to_str()), self._names)))
        self._backend.no_padding()
        self._backend.no_truncation()

    def counting(self, text: str, only: Collection[str] | None = None) -> str:
        """Return a text whose special tokens count, but for those that are `broken`.

        Args:
            text: The text.
            only: The names that count. None: all.
        """
        return mended(
            self._names.sub(lambda name: _marked(name[0]) if only is None or name[0] in only else name[0], text)
        )

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


_COPIES: WeakKeyDictionary[PreTrainedTokenizerBase, LiteralTokenizer] = WeakKeyDictionary()


def literal(tokenizer: PreTrainedTokenizerBase) -> LiteralTokenizer:
    """Return the copy of a tokenizer, made once."""
    if tokenizer not in _COPIES:
        _COPIES[tokenizer] = LiteralTokenizer(tokenizer)
    return _COPIES[tokenizer]


def _marked(name: str) -> str:
    return name[0] + _COUNTS + name[1:]


def _renamed(tokenizer_json: dict[str, Any], names: re.Pattern[str]) -> dict[str, Any]:
    """Return what a tokenizer says of itself with other names for its special tokens, at the same ids."""

    def name_of(token: Any) -> Any:
        return _marked(token) if isinstance(token, str) and names.fullmatch(token) else token

    added = [token | {"content": name_of(token["content"])} for token in tokenizer_json["added_tokens"]]
    model = dict(tokenizer_json["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces and their scores
        model["vocab"] = [[name_of(piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {name_of(token): i for token, i in vocabulary.items()}
    if "unk_token" in model:
        model["unk_token"] = name_of(model["unk_token"])
    return tokenizer_json | {"added_tokens": added, "model": model}
