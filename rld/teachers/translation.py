"""A student's rollout in the tokens of a teacher with another tokenizer.

The teacher reads the same conversation in its own chat template, and the bytes of the student's completion in its own
tokens, with its own end token where the student ended. No model runs here.

Shapes: B completions, P tokens of the teacher's prompts, U of its completions, `S = P + U`, T tokens of the student's
completions, V tokens that both vocabularies have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rld.errors import RecipeError, TeacherError
from rld.models.prompting import PromptEncoder
from rld.teachers.byte_alignment import END, ids_by_bytes, shared_vocabulary, spans, starts, token_bytes, valid_text
from rld.utils.tensors import pad_prompts_and_completions, pad_right

_PROBE = "The quick brown fox jumps over 13 lazy dogs."


@dataclass(frozen=True)
class Translation:
    """A batch of completions in a teacher's tokens, aligned with the student's."""

    ids_BS: Tensor
    """The teacher's prompts, padded on the left, and completions, padded on the right."""
    attention_BS: Tensor
    num_tokens: int
    """U; 0 when no completion has a byte."""
    starts_BT: Tensor
    """For each student token the index in U of the teacher token that starts at the same byte; -1 if none does."""
    student_spans_BT: Tensor
    """The span of each student token; -1 for none."""
    teacher_spans_BU: Tensor
    """The span of each teacher token; -1 for none."""
    has_space_B: Tensor
    """Whether the teacher's tokenizer put a space before the text, so that its first token differs in it."""

    def to(self, device: torch.device) -> Translation:
        """Return the translation on another device."""
        return Translation(
            self.ids_BS.to(device),
            self.attention_BS.to(device),
            self.num_tokens,
            self.starts_BT.to(device),
            self.student_spans_BT.to(device),
            self.teacher_spans_BU.to(device),
            self.has_space_B.to(device),
        )


class _TranslatedCompletion(NamedTuple):
    """One completion in the teacher's tokens; the other fields are as in `Translation`."""

    prompt_ids: list[int]
    ids: list[int]
    starts: list[int]
    student_spans: list[int]
    teacher_spans: list[int]
    has_space: bool


class StudentVocabulary:
    """The bytes of a student's tokens.

    Args:
        encoder: Encodes the student's prompts.
        is_chat: Whether these are conversations.

    Attributes:
        ids_by_bytes: The token that spells each text. Of its ends, only the one that the student is to use spells an
            end, so that only that one has a partner in the teacher's vocabulary.
    """

    def __init__(self, encoder: PromptEncoder, is_chat: bool) -> None:
        tokenizer, end, ends = encoder.tokenizer, encoder.end_token(is_chat), encoder.ends(is_chat)
        pieces = token_bytes(tokenizer, [] if end is None else [end])
        self.ids_by_bytes = ids_by_bytes(tokenizer, pieces)
        self._pieces_with_all_ends = token_bytes(tokenizer, ends) if set(ends) - {end} else pieces
        self.has_space = is_chat and encoder.puts_space_behind_turns
        """Whether a completion begins with a space that the tokenizer puts before a text."""

    def spell(self, ids: Iterable[int], mask: Iterable[int]) -> list[bytes]:
        """Return the bytes of each token; none where the mask is 0, or for ids that only pad the vocabulary.

        A space that the tokenizer puts before a text is left out.
        """
        vocabulary = self._pieces_with_all_ends
        pieces = [vocabulary[i] if counts and i < len(vocabulary) else b"" for i, counts in zip(ids, mask, strict=True)]
        return _without_space(pieces) if self.has_space else pieces


class CompletionTranslator:
    """Translates a student's completions into a teacher's tokens.

    Args:
        name: The teacher's name in errors.
        encoder: Encodes prompts for the teacher.
        student: The student's tokens.
        is_chat: Whether prompts are conversations.

    Attributes:
        vocabulary: Ids `[V]` of the student's and of the teacher's tokens that spell the same.

    Raises:
        TeacherError: the tokens of one of the two cannot be read as bytes.
    """

    def __init__(
        self,
        name: str,
        encoder: PromptEncoder,
        *,
        student: StudentVocabulary,
        is_chat: bool,
    ) -> None:
        self._name, self._encoder, self._student = name, encoder, student
        tokenizer = self._tokenizer = encoder.tokenizer
        self._end = encoder.end_token(is_chat)
        self._pieces = token_bytes(tokenizer, [] if self._end is None else [self._end])
        self._require_readable()
        self.vocabulary = shared_vocabulary(student.ids_by_bytes, ids_by_bytes(tokenizer, self._pieces))

    def _require_readable(self) -> None:
        ids = self._encoder.encode_answer(_PROBE)
        if self._tokenizer.unk_token_id not in ids and b"".join(self._spell(ids, _PROBE)) != _PROBE.encode():
            raise TeacherError(
                f"teacher '{self._name}': its tokens don't spell the text that they encode ({_PROBE!r}), so they "
                "cannot be aligned with the student's; choose a teacher whose tokenizer keeps the text as it is"
            )

    def translate(self, prompts: Sequence[Any], ids_BT: Tensor, mask_BT: Tensor) -> Translation:
        """Translate prompts and completions into the teacher's tokens, on the CPU.

        Args:
            prompts: Text or messages, one per completion.
            ids_BT: The student's completions.
            mask_BT: 1 for the tokens that count.

        Raises:
            TeacherError: a prompt is a conversation, and the teacher has no chat template or one that refuses it.
        """
        completions = [self._translate(*row) for row in zip(prompts, ids_BT.tolist(), mask_BT.tolist(), strict=True)]
        rows = [(row.prompt_ids, row.ids) for row in completions]
        ids_BS, attention_BS, mask_BU = pad_prompts_and_completions(rows)
        return Translation(
            ids_BS=ids_BS,
            attention_BS=attention_BS,
            num_tokens=mask_BU.shape[1],
            starts_BT=torch.tensor([row.starts for row in completions]),
            student_spans_BT=torch.tensor([row.student_spans for row in completions]),
            teacher_spans_BU=pad_right([row.teacher_spans for row in completions], fill=-1)[0],
            has_space_B=torch.tensor([row.has_space for row in completions]),
        )

    def _translate(self, prompt: Any, ids: list[int], mask: list[int]) -> _TranslatedCompletion:
        student_pieces = self._student.spell(ids, mask)
        data = b"".join(student_pieces)
        text = valid_text(data)
        prompt_ids, teacher_ids = self._encode(prompt, text)
        teacher_pieces = self._spell(teacher_ids, text)
        has_space = b"".join(teacher_pieces) != b"".join(self._pieces[i] for i in teacher_ids)
        if self._end is not None and data[len(text.encode()) :].startswith(END):
            teacher_ids, teacher_pieces = [*teacher_ids, self._end], [*teacher_pieces, END]
        student_spans, teacher_spans = spans(student_pieces, teacher_pieces)
        first = starts(student_pieces, teacher_pieces)
        differs = has_space != self._student.has_space
        return _TranslatedCompletion(prompt_ids, teacher_ids, first, student_spans, teacher_spans, differs)

    def _spell(self, ids: list[int], text: str) -> list[bytes]:
        """Return the bytes of each token of a text, without the space that the tokenizer puts before it."""
        pieces = [self._pieces[i] for i in ids]
        return _without_space(pieces) if b"".join(pieces) == b" " + text.encode() else pieces

    def _encode(self, prompt: Any, text: str) -> tuple[list[int], list[int]]:
        """Return the teacher's tokens of a prompt, and of a text behind it."""
        try:
            return self._encoder.encode_with(prompt, text)
        except RecipeError as error:
            raise TeacherError(
                f"teacher '{self._name}': {error}; give it a template with chat_template in the recipe, or "
                "Teacher(..., chat_template=...), in Jinja"
            ) from error


def _without_space(pieces: list[bytes]) -> list[bytes]:
    """Return the bytes of tokens without the space with which SentencePiece begins a text."""
    first = next((i for i, piece in enumerate(pieces) if piece), None)
    if first is not None and pieces[first].startswith(b" "):
        return [*pieces[:first], pieces[first][1:], *pieces[first + 1 :]]
    return pieces
