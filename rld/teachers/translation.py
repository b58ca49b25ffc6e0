"""A student's rollout in the words of a teacher with another tokenizer.

The teacher reads the same conversation in its own chat template, and the bytes of the student's completion in its own
tokens; where the student ended, it ends too. Nothing here runs a model.

Shapes: B completions, P tokens of the teacher's prompts, U of its completions, `S = P + U`, T tokens of the student's
completions, V tokens that both vocabularies have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rld.errors import TeacherError
from rld.models.prompting import PromptEncoder
from rld.teachers.byte_alignment import END, shared_vocabulary, spans, starts, token_bytes, valid_text

_PROBE = "The quick brown fox jumps over 13 lazy dogs."


@dataclass(frozen=True)
class Translation:
    """A batch of completions in a teacher's tokens, and where they meet the student's."""

    ids_BS: Tensor
    """The teacher's prompts, padded on the left, and completions, padded on the right."""
    attention_BS: Tensor
    num_tokens: int
    """U; 0 when no completion has a byte."""
    starts_BT: Tensor
    """For each token of the student's, the teacher's in U that starts at the same byte; -1 where none does."""
    spans_BT: Tensor
    """The span of each token of the student's; -1 for none."""
    theirs_BU: Tensor
    """The span of each token of the teacher's; -1 for none."""
    spaced_B: Tensor
    """Whether the teacher's tokenizer put a space before the text: its first token is then another one than ours."""

    def to(self, device: torch.device) -> Translation:
        return Translation(
            self.ids_BS.to(device),
            self.attention_BS.to(device),
            self.num_tokens,
            self.starts_BT.to(device),
            self.spans_BT.to(device),
            self.theirs_BU.to(device),
            self.spaced_B.to(device),
        )


class StudentVocabulary:
    """What a student's tokens spell, made once for all teachers.

    Args:
        tokenizer: The student's.
        ends: The tokens that end its completions.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        end = end_token(tokenizer, ends, _chat_template(tokenizer))
        self.pieces = token_bytes(tokenizer, [] if end is None else [end])
        """Of its ends, only the one that it is to use has a partner in the teacher's vocabulary."""
        self._all = token_bytes(tokenizer, ends) if set(ends) - {end} else self.pieces

    def spelt(self, ids: Iterable[int], mask: Iterable[int]) -> list[bytes]:
        """Return the bytes of each token; none where the mask is 0, or for ids that only pad the vocabulary."""
        return [self._all[i] if counts and i < len(self._all) else b"" for i, counts in zip(ids, mask, strict=True)]


class CompletionTranslator:
    """Puts a student's completions into a teacher's tokens.

    Args:
        name: The teacher's, for errors.
        encoder: Encodes prompts for the teacher.
        ends: The tokens that end the teacher's completions.
        student: The student's tokens.

    Attributes:
        vocabulary: Ids `[V]` of the student's and of the teacher's tokens that spell the same.

    Raises:
        TeacherError: the tokens of one of the two cannot be read as bytes.
    """

    def __init__(
        self,
        name: str,
        encoder: PromptEncoder,
        ends: Collection[int],
        student: StudentVocabulary,
    ) -> None:
        self._name, self._encoder, self._student = name, encoder, student
        tokenizer = self._tokenizer = encoder.tokenizer
        self._template = encoder.chat_template or _chat_template(tokenizer)
        try:
            self._end = end_token(tokenizer, ends, self._template)
        except TemplateError as error:
            raise TeacherError(f"teacher '{name}': chat_template: {error}") from error
        self._pieces = token_bytes(tokenizer, [] if self._end is None else [self._end])
        self._require_readable()
        self.vocabulary = shared_vocabulary(student.pieces, self._pieces)

    def _require_readable(self) -> None:
        ids = self._encode(_PROBE)
        if self._tokenizer.unk_token_id not in ids and b"".join(self._spelt(ids, _PROBE)) != _PROBE.encode():
            raise TeacherError(
                f"teacher '{self._name}': its tokens don't spell the text that they encode ({_PROBE!r}), so they "
                "cannot be aligned with the student's; choose a teacher whose tokenizer keeps the text as it is"
            )

    def translate(self, prompts: Sequence[Any], ids_BT: Tensor, mask_BT: Tensor) -> Translation:
        """Put prompts and completions into the teacher's tokens, on the CPU.

        Args:
            prompts: Text or messages, one per completion.
            ids_BT: The student's completions.
            mask_BT: 1 for the tokens that count.

        Raises:
            TeacherError: a prompt is a conversation, and the teacher has no chat template or one that refuses it.
        """
        rows = [self._row(*row) for row in zip(ids_BT.tolist(), mask_BT.tolist(), strict=True)]
        completions, firsts, ours, theirs, spaced = zip(*rows, strict=True)
        before, after = [self._prompt(prompt) for prompt in prompts], list(completions)
        longest, num_tokens = max(map(len, before)), max(map(len, after))
        ids, attention = [], []
        for prompt, completion in zip(before, after, strict=True):
            left, right = longest - len(prompt), num_tokens - len(completion)
            ids.append([0] * left + prompt + completion + [0] * right)
            attention.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
        return Translation(
            torch.tensor(ids),
            torch.tensor(attention),
            num_tokens,
            torch.tensor(firsts),
            torch.tensor(ours),
            torch.tensor([row + [-1] * (num_tokens - len(row)) for row in theirs], dtype=torch.int64),
            torch.tensor(spaced),
        )

    def _row(self, ids: list[int], mask: list[int]) -> tuple[list[int], list[int], list[int], list[int], bool]:
        """One completion in the teacher's tokens, and for both sides what `Translation` says of them."""
        ours = self._student.spelt(ids, mask)
        data = b"".join(ours)
        text = valid_text(data)
        completion = self._encode(text)
        theirs = self._spelt(completion, text)
        spaced = b"".join(theirs) != b"".join(self._pieces[i] for i in completion)
        if self._end is not None and data[len(text.encode()) :].startswith(END):
            completion, theirs = [*completion, self._end], [*theirs, END]
        return completion, starts(ours, theirs), *spans(ours, theirs), spaced

    def _encode(self, text: str) -> list[int]:
        # a completion that spells the name of a special token has not said that token
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def _spelt(self, ids: list[int], text: str) -> list[bytes]:
        pieces = [self._pieces[i] for i in ids]
        if b"".join(pieces) == b" " + text.encode():  # SentencePiece puts a space before a text
            first = next(i for i, piece in enumerate(pieces) if piece)
            pieces[first] = pieces[first][1:]
        return pieces

    def _prompt(self, prompt: Any) -> list[int]:
        """The teacher's tokens for a prompt, as TRL makes the student's."""
        if not isinstance(prompt, str) and self._template is None:
            raise TeacherError(
                f"teacher '{self._name}' has no chat template, but the prompts are conversations; give it one with "
                "chat_template in the recipe, or Teacher(..., chat_template=...), in Jinja"
            )
        try:
            return self._encoder.encode(prompt)
        except TemplateError as error:
            raise TeacherError(f"teacher '{self._name}': chat_template: {error}") from error


def end_token(tokenizer: PreTrainedTokenizerBase, ends: Collection[int], template: str | None) -> int | None:
    """Return the one of `ends` that a model writes after an answer.

    That is the one which closes an assistant's turn in its chat template, else the tokenizer's own, else the first.
    """
    if template is not None:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        ids: Any = tokenizer.apply_chat_template(turns, chat_template=template, return_dict=True)
        closing = [i for i in ids["input_ids"] if i in ends]
        if closing:
            return int(closing[-1])
    own = tokenizer.eos_token_id
    return own if own in ends else min(ends, default=None)


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    return tokenizer.get_chat_template() if tokenizer.chat_template is not None else None
