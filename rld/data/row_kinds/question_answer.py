"""Rows of a question and its gold answer, also in the forms that TRL reads: `prompt`, `completion`, `messages`."""

from __future__ import annotations

from collections.abc import Iterator

from rld.data.items import Item
from rld.data.row_kinds.fields import Fields
from rld.data.row_kinds.messages import SYSTEM_ROLES, Message, messages_of, prompt_of, question_of

NAMES = ("question", "answer", "level", "prompt", "completion", "messages")

_OTHER_KIND = "kind: conversation reads it"


def items(fields: Fields) -> Iterator[Item]:
    """Yield the item of a record; all columns that are no part of it go into its `entry`.

    A record has a question and an answer; or a prompt with its completion or answer, or with neither where other
    columns tell the rewards what is correct; or messages of one turn, the assistant's last.

    Raises:
        ValueError: it has something else.
    """
    if "question" in fields or not ("prompt" in fields or "messages" in fields):
        question, answer = fields.text("question"), fields.text("answer")
        yield Item(question, answer, fields.others())
    elif "prompt" in fields:
        prompt, gold = fields.value("prompt"), answer_of(fields)
        if isinstance(prompt, str):
            yield Item(fields.text("prompt"), gold, fields.others())
        else:
            yield _chat_item(prompt_of(prompt, fields.column("prompt")), gold, fields)
    else:
        messages = messages_of(fields.value("messages"), fields.column("messages"))
        if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            raise ValueError("messages should end with an answer of the assistant")
        yield _chat_item(messages[:-1], messages[-1]["content"], fields)


def answer_of(fields: Fields) -> str | None:
    """Return the gold answer of a prompt: its completion, a text or one message, or its answer; None without either.

    Raises:
        ValueError: it is something else.
    """
    if "completion" not in fields:
        return fields.text("answer") if "answer" in fields else None
    completion = fields.value("completion")
    match completion:
        case [{"role": "assistant", "content": str(text)}] if text.strip():
            return text
        case list():
            raise ValueError(f"completion should be text or one message of the assistant, not {completion!r:.80}")
    return fields.text("completion")


def _chat_item(messages: list[Message], answer: str | None, fields: Fields) -> Item:
    for column in ("system", "tools"):
        if column in fields and fields.value(column):
            raise ValueError(f"messages beside a column {column!r}; {_OTHER_KIND}")
    turns = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    if len(turns) > 1:
        raise ValueError(f"a conversation of {len(turns)} messages before the answer; {_OTHER_KIND}")
    return Item(question_of(messages), answer, fields.others(), messages=tuple(messages))
