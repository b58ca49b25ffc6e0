"""Which token ids a model reads for a prompt and writes for an answer: the one renderer for all parts of the code.

A prompt is a text, read as it stands, or a conversation, rendered by the chat template with what opens the assistant's
answer. A completion is what the model writes behind that: the answer as the tokenizer spells it there, with no space
that the tokenizer puts in front of a text, and no token that reaches over the border; then the token that ends it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from rld.errors import DataError
from rld.models import chat_template as templates
from rld.models import literal_tokens, thinking
from rld.models.text_forms import coding_problem, excerpt, normal
from rld.models.thinking import StripThinking, Thinking
from rld.types import Row

_ANCHORS = "\n", "0", "a", ":"
"""Texts in front of an answer whose tokens do not join with it."""
_SPACES = "\u2581", "\u0120"
"""What stands for a space in tokens of SentencePiece and of byte-level tokenizers."""
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A byte in tokens of SentencePiece."""


@dataclass(frozen=True)
class PromptEncoder:
    """Converts prompts and answers to token ids, and completions to text.

    Args:
        tokenizer: The tokenizer of the model that reads the prompts.
        chat_template_kwargs: Further arguments of the chat template, such as `enable_thinking`.
        chat_template: The chat template in Jinja. None: the tokenizer's own.
        tools: Functions or JSON schemas that conversations may call.
        model_ends: The `eos_token_id`s of the model's generation configuration.
        strip_thinking: Whether answers are read without their thinking part; or the two markers around it.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    tools: Sequence[Any] | None = None
    model_ends: Sequence[int] = ()
    strip_thinking: StripThinking = False

    # -- prompts -----------------------------------------------------------------------------------------------------

    def render(self, prompt: Any) -> str:
        """Return a prompt as text: as it stands, or a conversation by the chat template.

        Raises:
            RecipeError: there is no chat template, or it refuses the conversation.
        """
        return literal_tokens.mended(self._rendered(prompt)[0])

    def encode(self, prompt: Any) -> list[int]:
        """Return the token ids of a prompt: a text, or a list of messages that the assistant is to answer.

        In a text the names of special tokens are tokens, because it may have been rendered before. In messages they
        are text. `tools` of a message, JSON schemas of functions, are rendered in place of the encoder's. An empty text
        is `start`.

        Raises:
            RecipeError: there is no chat template, or it refuses the conversation.
            DataError: the text cannot be encoded.
        """
        text, has_names = self._rendered(prompt)
        return self._encoded(text, is_plain=isinstance(prompt, str), has_names=has_names) or self.start

    def encode_all(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Return `encode` of each prompt. Equal neighbours are encoded once, and all at once where that is possible."""
        groups = [(prompt, len([*group])) for prompt, group in itertools.groupby(prompts)]
        different = self.encode_rows([prompt for prompt, _ in groups], [""] * len(groups))
        return [[*ids] for (ids, _), (_, size) in zip(different, groups, strict=True) for _ in range(size)]

    @cached_property
    def start(self) -> list[int]:
        """The token in front of a text without a prompt, which predicts its first token: BOS, or else the end token."""
        tokens = [self.tokenizer.bos_token_id, self.end_token(is_chat=False)]
        return [token for token in tokens if token is not None][:1]

    def spells_special_tokens(self, prompt: Any) -> bool:
        """Whether messages have names of special tokens, which are text there."""
        return self._rendered(prompt)[1]

    def _rendered(self, prompt: Any) -> tuple[str, bool]:
        """Return the text of a prompt, the names of special tokens in messages broken; and whether there are any."""
        if isinstance(prompt, str):
            return prompt, False
        names = literal_tokens.pattern(self.tokenizer)
        messages = literal_tokens.broken(prompt, names)
        tools = [tool for message in messages for tool in message.pop("tools", None) or ()]
        text = templates.render(
            self.tokenizer,
            messages,
            chat_template=self.chat_template,
            tools=tools or self.tools,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        return text, literal_tokens.mended(text) != text

    def _encoded(self, text: str, *, is_plain: bool, has_names: bool, answer: str = "") -> list[int]:
        """Return the token ids of a rendered prompt and an answer behind it.

        Args:
            text: The prompt.
            is_plain: Whether the tokenizer adds what stands in front of each text, such as a BOS.
            has_names: Whether the prompt has names of special tokens that are broken.
            answer: The answer, in which names of special tokens are text.
        """
        try:
            if has_names or literal_tokens.pattern(self.tokenizer).search(answer):
                literal = literal_tokens.literal(self.tokenizer)
                answer = literal.counting(answer, self._special_markers)
                ids = literal.encode(literal.counting(text) + answer, add_special_tokens=is_plain)
            else:
                ids = self.tokenizer(text + answer, add_special_tokens=is_plain)["input_ids"]
        except (UnicodeError, TypeError) as error:
            raise DataError(coding_problem(text + answer, error)) from error
        size = len(self._appended) if is_plain else 0
        return ids[:-size] if size and ids[-size:] == self._appended else ids

    @cached_property
    def _appended(self) -> list[int]:
        """The tokens that the tokenizer puts behind each text, which is no end: an answer follows."""
        whole: list[int] = self.tokenizer("a")["input_ids"]
        bare = self._bare("a")
        first = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), len(whole))
        return whole[first + len(bare) :]

    def _bare(self, text: str) -> list[int]:
        return self._encoded("", is_plain=False, has_names=False, answer=text)

    # -- answers -----------------------------------------------------------------------------------------------------

    def encode_answer(self, text: str) -> list[int]:
        """Return the token ids of an answer's text by itself: without special tokens, or a space put in front."""
        ids = self._bare(text)
        if not self._puts_space_in_front:
            return ids
        for anchor in _ANCHORS:
            before, whole = self._bare(anchor), self._bare(anchor + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return ids

    def encode_answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Return `encode_answer` of each text, encoded all at once where special tokens allow it."""
        names = literal_tokens.pattern(self.tokenizer)
        if self._puts_space_in_front or any(names.search(text) for text in texts):
            return [self.encode_answer(text) for text in texts]
        return self._batch([*texts], is_plain=False)

    @cached_property
    def puts_space_behind_turns(self) -> bool:
        """Whether the tokenizer puts a space before an answer in a conversation, which decoding takes away."""
        try:
            ids = self.encode_with([{"role": "user", "content": "?"}], "a")[1]
        except templates.RefusedConversation:  # no prompt is like this one, so nothing is known
            return False
        return self._begins_with_space(ids)

    @cached_property
    def _puts_space_in_front(self) -> bool:
        return self._begins_with_space(self._bare("a"))

    def _begins_with_space(self, ids: list[int]) -> bool:
        return any(str(token).startswith(_SPACES) for token in self.tokenizer.convert_ids_to_tokens(ids[:1]))

    def encode_with(self, prompt: Any, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt, and of a text as the tokenizer spells it behind that prompt.

        Names of special tokens in the text are text. Where a token would reach over the border, the text is spelt by
        itself.
        """
        rendered, has_names = self._rendered(prompt)
        options: dict[str, Any] = {"is_plain": isinstance(prompt, str), "has_names": has_names}
        prompt_ids = self._encoded(rendered, **options)
        ids, size = self._encoded(rendered, **options, answer=text), len(prompt_ids)
        return prompt_ids or self.start, ids[size:] if ids[:size] == prompt_ids else self.encode_answer(text)

    def encode_rows(self, prompts: Sequence[Any], answers: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Return `encode_with` of each prompt and answer, encoded all at once where special tokens allow it."""
        rendered = [self._rendered(prompt) for prompt in prompts]
        names, encoded = literal_tokens.pattern(self.tokenizer), dict[int, tuple[list[int], list[int]]]()
        for is_plain in (False, True):
            numbers = [
                i
                for i, (_, has_names) in enumerate(rendered)
                if isinstance(prompts[i], str) == is_plain and not has_names and not names.search(answers[i])
            ]
            texts = [rendered[i][0] for i in numbers] + [rendered[i][0] + answers[i] for i in numbers]
            ids = self._batch(texts, is_plain=is_plain)
            for i, prompt_ids, whole in zip(numbers, ids[: len(numbers)], ids[len(numbers) :], strict=True):
                size = len(prompt_ids)
                is_prefix = whole[:size] == prompt_ids
                answer_ids = whole[size:] if is_prefix else self.encode_answer(answers[i])
                encoded[i] = prompt_ids or self.start, answer_ids
        return [encoded.get(i) or self.encode_with(prompts[i], answers[i]) for i in range(len(prompts))]

    def _batch(self, texts: list[str], *, is_plain: bool) -> list[list[int]]:
        """Return the token ids of rendered texts in which all names of special tokens are tokens."""
        if not texts:
            return []
        try:
            ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=is_plain)["input_ids"]
        except (UnicodeError, TypeError):  # one by one, so that the error names the text
            return [self._encoded(text, is_plain=is_plain, has_names=False) for text in texts]
        size = len(self._appended) if is_plain else 0
        return [row[:-size] if size and row[-size:] == self._appended else row for row in ids]

    def encode_completion(self, prompt: Any, answer: str) -> list[int]:
        """Return the token ids by which a model gives `answer` to `prompt`, with its `required_end`."""
        return [*self.encode_with(prompt, answer)[1], self.required_end(prompt)]

    def required_end(self, prompt: Any) -> int:
        """Return the token that ends an answer to a prompt.

        Raises:
            DataError: nothing ends an answer of this model.
        """
        if (end := self.end_token(is_chat=not isinstance(prompt, str))) is None:
            raise DataError(
                f"neither the tokenizer {self.tokenizer.name_or_path!r} nor its model's generation configuration has "
                "a token that ends an answer; set eos_token of the tokenizer"
            )
        return end

    def end_token(self, is_chat: bool) -> int | None:
        """Return the token that ends an answer; None if there is none.

        Behind a conversation it is the one by which the template closes a turn, or else, as behind a text, that of
        the tokenizer, or else that of the model.
        """
        candidates = [self.turn_end if is_chat else None, self.tokenizer.eos_token_id, *self.model_ends]
        return next((token for token in candidates if token is not None), None)

    @cached_property
    def turn_end(self) -> int | None:
        """The token by which the chat template closes an assistant's turn; None if it closes turns by text."""
        if templates.template_of(self.tokenizer, self.chat_template, self.tools) is None:
            return None
        text = templates.behind_the_answer(
            self.tokenizer,
            chat_template=self.chat_template,
            tools=self.tools,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        closing = {*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids, *self.model_ends}
        return next((token for token in ids if token in closing), None)

    def ends(self, is_chat: bool) -> list[int]:
        """Return all tokens that end an answer, those that transformers knows of first."""
        tokens = [self.tokenizer.eos_token_id, *self.model_ends, self.turn_end if is_chat else None]
        return list(dict.fromkeys(token for token in tokens if token is not None))

    def decode(self, ids: Sequence[list[int]]) -> list[str]:
        """Return the text of each completion, without special tokens other than markers of a thinking part."""
        names = self._special_markers
        if not names:
            texts: list[str] = self.tokenizer.batch_decode(list(ids), skip_special_tokens=True)
            return texts
        pattern = literal_tokens.pattern(self.tokenizer)
        whole: list[str] = self.tokenizer.batch_decode(list(ids), skip_special_tokens=False)
        return [pattern.sub(lambda name: name[0] if name[0] in names else "", text) for text in whole]

    def decode_beginning(self, ids: Sequence[list[int]]) -> list[str]:
        """Return the text with which each completion begins, as far as it stays whatever tokens follow these.

        Spaces may still change. Bytes at the end may yet be part of another character: a run of byte tokens that is no
        text becomes replacement characters, all of it.
        """
        finished = []
        for row in ids:
            tokens = self.tokenizer.convert_ids_to_tokens(list(row))
            size = next((n for n in range(len(row), 0, -1) if not _BYTE_TOKEN.fullmatch(tokens[n - 1] or "")), 0)
            finished.append(list(row[:size]))
        return [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in self.decode(finished)]

    # -- thinking ----------------------------------------------------------------------------------------------------

    @cached_property
    def thinking(self) -> Thinking | None:
        """The markers of the thinking part that answers are read without; None where they are read as a whole."""
        template = templates.template_of(self.tokenizer, self.chat_template, self.tools)
        return thinking.markers(self.strip_thinking, template)

    @cached_property
    def _special_markers(self) -> frozenset[str]:
        """The special tokens in the markers of a thinking part."""
        pattern = literal_tokens.pattern(self.tokenizer)
        return frozenset(name for marker in self.thinking or () for name in pattern.findall(marker))

    @cached_property
    def template_thinking(self) -> Thinking | None:
        """The markers of a thinking part that the chat template has, whether answers are read without it or not."""
        return thinking.of_template(templates.template_of(self.tokenizer, self.chat_template, self.tools))

    def answer(self, prompt: Any, completion: str) -> str:
        """Return a completion as it is judged: without its thinking part, where `strip_thinking` says so."""
        if self.thinking is None:
            return completion
        return self.thinking.answer(completion, self.thinking.opened_by(self.render(prompt)))

    def whole_completions(self, prompts: Sequence[Any], ids: Sequence[list[int]]) -> list[str]:
        """Return completions with their thinking parts, the opening marker included where it is in the prompt."""
        pair = self.thinking or self.template_thinking
        if pair is None:
            return self.decode(ids)
        texts = replace(self, strip_thinking=tuple(pair)).decode(ids)
        rendered = [self.render(prompt) for prompt in prompts]
        return [pair.whole(text, pair.opened_by(prompt)) for text, prompt in zip(texts, rendered, strict=True)]

    # -- rows --------------------------------------------------------------------------------------------------------

    def problem(self, ids: list[int], answer: str, max_new_tokens: int | None) -> str | None:
        """Return why a model cannot write an answer, None if it can.

        Args:
            ids: What `encode_completion` returns of it.
            answer: The answer.
            max_new_tokens: Tokens that it may take, its end included. None: any number.
        """
        if max_new_tokens is not None and len(ids) > max_new_tokens:
            return (
                f"its answer {excerpt(answer)} takes {len(ids)} tokens with its end, and {max_new_tokens} are allowed"
            )
        text = self.decode([ids])[0]
        if normal(text) != normal(answer):
            return f"its answer {excerpt(answer)} is {excerpt(text)} once the tokenizer has encoded and decoded it"
        return None

    def count_tokens(self, rows: Sequence[Row], answers: Sequence[Sequence[int]]) -> int:
        """Return the tokens that a model reads and writes when it answers rows, with the token ids of each answer."""
        return sum(map(len, self.encode_all([row["prompt"] for row in rows]))) + sum(map(len, answers))


def is_chat(rows: Iterable[Row]) -> bool:
    """Whether rows have conversations as prompts; all rows of a run are alike."""
    return any(not isinstance(row["prompt"], str) for row in itertools.islice(rows, 1))
