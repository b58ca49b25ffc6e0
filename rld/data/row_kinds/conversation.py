"""Rows of conversations of several turns, of which the assistant's last turn or every one is learnt and scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rld.data.items import Item
from rld.data.row_kinds.fields import Fields
from rld.data.row_kinds.messages import Message, messages_of, prompt_of, question_of, with_system, with_tools
from rld.data.row_kinds.question_answer import answer_of

NAMES = ("messages", "system", "tools", "level", "prompt", "completion", "answer")

Turns = Literal["last", "all"]


def items(fields: Fields, *, turns: Turns) -> Iterator[Item]:
    """Yield an item for the last answer of a conversation, or for each answer in it.

    The messages in front of an answer are its prompt, as they are. A turn of the assistant that only calls tools is no
    answer, because it has no text.

    Args:
        fields: `messages`, or a `prompt` of messages with its `completion` or `answer`; `system` and `tools` where
            there are some.
        turns: Whether the last answer alone is learnt and scored.

    Raises:
        ValueError: it is no conversation, or its last message is no answer.
    """
    if "messages" in fields or "prompt" not in fields:
        messages = messages_of(fields.value("messages"), fields.column("messages"))
    else:
        prompt, answer = prompt_of(fields.value("prompt"), fields.column("prompt")), answer_of(fields)
        if answer is None:
            yield _item(_complete(prompt, fields), None, fields)
            return
        messages = [*prompt, {"role": "assistant", "content": answer}]
    if not _is_answer(messages[-1]):
        raise ValueError("a conversation should end with an answer of the assistant that has text")
    messages = _complete(messages, fields)
    for i in [len(messages) - 1] if turns == "last" else range(len(messages)):
        if _is_answer(messages[i]):
            yield _item(messages[:i], messages[i]["content"], fields)


def _complete(messages: list[Message], fields: Fields) -> list[Message]:
    """Return messages with what stands beside them in the record."""
    return with_tools(with_system(messages, fields), fields)


def _is_answer(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message["content"].strip())


def _item(messages: list[Message], answer: str | None, fields: Fields) -> Item:
    return Item(question_of(messages), answer, fields.others(), messages=tuple(messages))
