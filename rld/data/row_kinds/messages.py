"""Chat messages of a record: `role` and `content`, and what the chat template of a model reads beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from rld.data.row_kinds.fields import Fields

Message: TypeAlias = dict[str, Any]
"""A message. The first one of a prompt may have `tools`, the JSON schemas of functions that the model may call."""

SYSTEM_ROLES = ("system", "developer")

_ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")


def messages_of(value: Any, name: str) -> list[Message]:
    """Return a list of messages, without the keys that a format fills with None.

    Args:
        value: What the file has: a list of messages, or JSON text of one.
        name: Its name in errors.

    Raises:
        ValueError: it is something else, has a role or content that no chat template reads, or begins with the
            assistant.
    """
    value = _from_json(value, name)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} should be a list of messages, not {value!r:.80}")
    messages = [_message(message, f"message {i} of {name}") for i, message in enumerate(value)]
    first = next((message["role"] for message in messages if message["role"] not in SYSTEM_ROLES), None)
    if first != "user":
        begin = f"begins with the {first}" if first else "has no message of the user"
        raise ValueError(f"{name} {begin}; a conversation begins with the user, after at most a system message")
    return messages


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise ValueError(f"{place} should have a role and content, not {value!r:.80}")
    message = {key: item for key, item in value.items() if item is not None or key == "content"}
    if message["role"] not in _ROLES:
        raise ValueError(f"{place} has the role {message['role']!r:.80}, not one of {', '.join(_ROLES)}")
    content = message.setdefault("content", None)
    if content is None and message.get("tool_calls"):
        message["content"] = ""
    elif not isinstance(content, str):
        raise ValueError(f"{place} should have text as content, not {content!r:.80}")
    elif message["role"] == "user" and not content.strip():
        raise ValueError(f"{place} is an empty message of the user")
    return message


def with_tools(messages: Sequence[Message], fields: Fields) -> list[Message]:
    """Return messages of which the first one has the record's `tools`, a list or JSON text of one, if there are any.

    Raises:
        ValueError: they are something else.
    """
    tools = _from_json(fields.value("tools"), "tools") if "tools" in fields else None
    if not tools:
        return list(messages)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"tools should be a list of JSON schemas, not {tools!r:.80}")
    return [{**messages[0], "tools": tools}, *messages[1:]]


def _from_json(value: Any, name: str) -> Any:
    """Return what a text that is JSON says, as a table of text has it; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error


def question_of(messages: Sequence[Message]) -> str:
    """Return the text by which equal prompts are recognised: the messages without those of the system."""
    turns = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in turns)
