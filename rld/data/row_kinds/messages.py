"""Chat messages of a record: `role` and `content`, and what the chat template of a model reads beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from rld.data.formats.json_values import whole_number
from rld.data.row_kinds.fields import Fields

Message: TypeAlias = dict[str, Any]
"""A message. The first one of a prompt may have `tools`, the JSON schemas of functions that the model may call."""

SYSTEM_ROLES = ("system", "developer")

_ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")

_SPEAKERS = {"human": "user", "gpt": "assistant"}
"""Roles as data sets in ShareGPT form call them; the others have the same names."""

_CALLS_IN_SHAREGPT = (
    'write a function_call as {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": '
    '{"name": ..., "arguments": {...}}}]}, and an observation as {"role": "tool", "content": ...}'
)

_ORDER = "after at most a system message, user and assistant take turns, and a tool speaks where it was called"


def messages_of(value: Any, name: str) -> list[Message]:
    """Return a list of messages, without the keys that a format fills with None.

    Args:
        value: What the file has: a list of messages, or JSON text of one. They may be in ShareGPT form, with `from` and
            `value` for `role` and `content`.
        name: Its name in errors.

    Raises:
        ValueError: it is something else, has a role or content that no chat template reads, or the messages are in an
            order that models are not trained on.
    """
    value = _from_json(value, name)
    if isinstance(value, (str, list, tuple)) and not value:
        raise ValueError(f"{name} is empty")
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} should be a list of messages, not {value!r:.80}")
    messages = [_message(message, f"message {i} of {name}") for i, message in enumerate(value, start=1)]
    turns = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    if not turns or turns[0]["role"] != "user":
        begin = f"begins with the {turns[0]['role']}" if turns else "has no message of the user"
        raise ValueError(f"{name} {begin}; a conversation begins with the user, after at most a system message")
    _require_turns(messages, name)
    return messages


def prompt_of(value: Any, name: str) -> list[Message]:
    """Return the messages of a prompt, of which the last one is to be answered.

    Raises:
        ValueError: as `messages_of`, or they end with the assistant.
    """
    messages = messages_of(value, name)
    if messages[-1]["role"] == "assistant":
        raise ValueError(f"{name} ends with the assistant, and there is nothing to answer")
    return messages


def _require_turns(messages: Sequence[Message], name: str) -> None:
    """Refuse an order of roles that models are not trained on.

    Raises:
        ValueError: a message of the system stands behind others, one of the user or the assistant follows another of
            the same role, a tool speaks that was not called, or one that was called does not.
    """
    previous, is_called = "", False
    for message in messages:
        role = message["role"]
        fault = ""
        if role in SYSTEM_ROLES and previous:
            fault = "a message of the system behind others"
        elif role == "tool" and not is_called:
            fault = "a message of a tool that was not called"
        elif role != "tool" and is_called and previous == "assistant":
            fault = "a call of a tool without the tool's message behind it"
        elif role != "tool" and role == previous:
            fault = f"two messages of the {role} in a row"
        if fault:
            raise ValueError(f"{name} has {fault}; {_ORDER}")
        is_called = bool(message.get("tool_calls")) or (is_called and role == "tool")
        previous = role


def _message(value: Any, place: str) -> Message:
    if isinstance(value, dict) and {"from", "value"} <= value.keys():
        others = {key: item for key, item in value.items() if key not in ("from", "value")}
        value = {**others, "role": _SPEAKERS.get(str(value["from"]), value["from"]), "content": value["value"]}
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise ValueError(f"{place} should have a role and content, not {value!r:.80}")
    message = {key: item for key, item in value.items() if item is not None or key == "content"}
    if message["role"] not in _ROLES:
        fix = f"; {_CALLS_IN_SHAREGPT}" if message["role"] in ("function_call", "observation") else ""
        raise ValueError(f"{place} has the role {message['role']!r:.80}, not one of {', '.join(_ROLES)}{fix}")
    content = message.setdefault("content", None)
    if content is None and message.get("tool_calls"):
        message["content"] = ""
    elif not isinstance(content, str):
        raise ValueError(f"{place} should have text as content, not {content!r:.80}")
    elif message["role"] == "user" and not content.strip():
        raise ValueError(f"{place} is an empty message of the user")
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], place)
    return message


def _tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Return calls of tools whose arguments are mappings; JSON text of them, OpenAI's form, is read.

    Chat templates write the arguments as JSON, so that text would be encoded twice.

    Raises:
        ValueError: they are no list of calls, or the arguments of one are no JSON object.
    """
    if not isinstance(calls, (list, tuple)) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"{place} should have a list of mappings as tool_calls, not {calls!r:.80}")
    return [_tool_call(call, place) for call in calls]


def _tool_call(call: dict[str, Any], place: str) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return {**call, "function": _tool_call(call["function"], place)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        mapping = json.loads(arguments)
    except ValueError:
        mapping = None
    if not isinstance(mapping, dict):
        raise ValueError(
            f"{place} calls {call.get('name')!r:.80} with arguments that are no JSON object: {arguments!r:.80}"
        )
    return {**call, "arguments": mapping}


def with_system(messages: Sequence[Message], fields: Fields) -> list[Message]:
    """Return messages that begin with the record's `system`, the text of a system message, if there is one.

    Raises:
        ValueError: it is no text, or the messages have another system message.
    """
    system = fields.value("system") if "system" in fields else None
    if system is None or system == "":
        return list(messages)
    message = {"role": "system", "content": fields.text("system")}
    if messages[0]["role"] not in SYSTEM_ROLES:
        return [message, *messages]
    if messages[0]["content"] != message["content"]:
        raise ValueError("the messages have a system message, and the column of `system` has another; leave out one")
    return list(messages)


def with_tools(messages: Sequence[Message], fields: Fields) -> list[Message]:
    """Return messages of which the first one has the record's `tools`, a list or JSON text of one, if there are any.

    Raises:
        ValueError: they are something else.
    """
    tools = _from_json(fields.value("tools"), fields.column("tools")) if "tools" in fields else None
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
        return json.loads(value, parse_int=whole_number)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{name} is not valid JSON: it is nested too deep") from error


def question_of(messages: Sequence[Message]) -> str:
    """Return the text by which equal prompts are recognised: the messages without those of the system."""
    turns = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in turns)
