"""Whether two tokenizers give the same token ids to all that can occur in a prompt or at the end of a completion.

A base model and its instruct sibling often differ in special tokens that occur in no text. So ordinary tokens are
compared all, as are the ids of probe texts, but special tokens where the chat template writes them or a text ends
with them. Others are named by `foreign_tokens`, so that a prompt that has one is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from rld.errors import RecipeError
from rld.models.chat_template import render

PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "def f(x):\n    return x ** 2",
    "Ünïcode 漢字 🙂",
    "a b=c:d",
    " caf\u00e9 cafe\u0301 \u212b \ufb01 \uff11\u00bd\u00b2  a\t\r\nb ",
)
"""Texts on which tokenizers differ: words, digits, code, white space, other scripts, and what normalisers change:
composed and decomposed accents, compatibility characters, upper case, white space at both ends."""

_USER, _ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}

_CONVERSATIONS = ([_USER], [{"role": "system", "content": "c"}, _USER], [_USER, _ASSISTANT, _USER])
"""What a chat template writes special tokens for."""


def probe_ids(tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool = False) -> list[list[int]]:
    """Return the token ids of each of `PROBES`."""
    return [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in PROBES]


def special_tokens(tokenizer: PreTrainedTokenizerBase, chat_options: Mapping[str, Any] | None = None) -> dict[int, str]:
    """Return the added tokens that can occur in a prompt or at the end of a completion, by id.

    Args:
        tokenizer: The tokenizer.
        chat_options: Further arguments of its chat template.
    """
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    for messages in _CONVERSATIONS if tokenizer.chat_template is not None else ():
        try:
            text = render(tokenizer, messages, chat_template_kwargs=chat_options or {})
        except RecipeError:  # such as a template that refuses a system message
            continue
        ids |= set(tokenizer.encode(text, add_special_tokens=False))
    return {i: token.content for i, token in sorted(tokenizer.added_tokens_decoder.items()) if i in ids}


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of all that can occur: ordinary tokens, the ids of `PROBES`, and `special_tokens`."""
    profile = TokenizerProfile.of(tokenizer)
    return _hash([profile.vocabulary, profile.probes, [*special_tokens(tokenizer).items()]])


@dataclass(frozen=True)
class TokenizerProfile:
    """What is compared of a teacher's tokenizer; a server sends it."""

    vocabulary: str
    """A hash of the ordinary tokens with their ids."""
    probes: list[list[int]]
    """The token ids of each of `PROBES`, with what the tokenizer puts before and behind a text."""
    added: Mapping[str, int]
    """The id of each added token."""
    ordinary: Mapping[str, int] | None = None
    """The id of each other token. None: unknown, because a server does not send them."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenizerProfile:
        """Return the profile of a tokenizer."""
        decoder = tokenizer.added_tokens_decoder
        ordinary = {token: i for token, i in tokenizer.get_vocab().items() if i not in decoder}
        return cls(
            vocabulary=_hash(sorted((i, token) for token, i in ordinary.items())),
            probes=probe_ids(tokenizer, add_special_tokens=True),
            added={token.content: i for i, token in decoder.items()},
            ordinary=ordinary,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a server sends: the arguments of this class, without ordinary tokens."""
        return {"vocabulary": self.vocabulary, "probes": self.probes, "added": dict(self.added)}

    @cached_property
    def tokens(self) -> dict[int, str]:
        """All known tokens by id."""
        return {i: token for token, i in [*(self.ordinary or {}).items(), *self.added.items()]}

    def difference(self, student: PreTrainedTokenizerBase, chat_options: Mapping[str, Any] | None = None) -> str | None:
        """Return in what this tokenizer differs from a student's, of all that can occur; None if in nothing.

        Args:
            student: The student's tokenizer.
            chat_options: Further arguments of the student's chat template.
        """
        profile = TokenizerProfile.of(student)
        different = self._different_ordinary(profile) or self._different_probe(profile)
        if different is not None:
            return different
        foreign = self.foreign_tokens(student)
        occurring = [i for i in special_tokens(student, chat_options) if i in foreign]
        return self._described(occurring[0], foreign[occurring[0]]) if occurring else None

    def foreign_tokens(self, student: PreTrainedTokenizerBase) -> dict[int, str]:
        """Return the student's added tokens, by id, at whose id this tokenizer has another token or none."""
        decoder = student.added_tokens_decoder
        return {i: token.content for i, token in decoder.items() if self.tokens.get(i) != token.content}

    def _described(self, i: int, token: str) -> str:
        teacher = repr(self.tokens[i]) if i in self.tokens else "not there"
        return f"token {i} is {token!r} in the student's and {teacher} in the teacher's"

    def _different_ordinary(self, student: TokenizerProfile) -> str | None:
        if self.vocabulary == student.vocabulary:
            return None
        if self.ordinary is None or student.ordinary is None:
            return "its ordinary tokens are others"
        for token, i in sorted(student.ordinary.items(), key=lambda item: item[1]):
            if self.tokens.get(i) != token:
                return self._described(i, token)
        return None  # it has more tokens, behind the student's

    def _different_probe(self, student: TokenizerProfile) -> str | None:
        for text, ids, student_ids in zip(PROBES, self.probes, student.probes, strict=True):
            if ids != student_ids:
                pair = [profile.tokens_text(ids) for profile, ids in ((student, student_ids), (self, ids))]
                return f"{text!r} is {pair[0]} in the student's and {pair[1]} in the teacher's"
        return None

    def tokens_text(self, ids: list[int]) -> str:
        """Return token ids as text for an error: the tokens, as far as they are known, and at most eight."""
        texts = [self.tokens.get(i, str(i)) for i in ids[:8]]
        return " ".join([*texts, "..."] if len(ids) > 8 else texts)


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
