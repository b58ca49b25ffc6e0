"""Makes a row of an item: its prompt, by the template and the style of the skill's prompts, and its answer."""

from __future__ import annotations

from typing import Any

from rld.data.items import Item
from rld.data.row_kinds.messages import SYSTEM_ROLES
from rld.errors import DataError
from rld.recipe.prompts import Prompts
from rld.types import Row
from rld.utils.templates import filled


def row_of(item: Item, prompts: Prompts, skill: str, *, level: int) -> Row:
    """Return the row of an item; a document's prompt is empty, and its answer is the text.

    Raises:
        DataError: it has messages, and prompts are no conversations.
    """
    rest = {"skill": skill, "level": level, "entry": item.entry}
    if item.is_document:
        return {"prompt": "", "answer": item.question, **rest, "is_cut": False}
    is_chat = prompts.style == "chat"
    if item.messages and not is_chat:
        raise DataError(
            f"{item.place}: a row of messages needs prompts: {{style: chat}} in the recipe, or in its skill {skill!r}"
        )
    prompt = _conversation(item, prompts) if is_chat else _filled(item.question, prompts)
    return {"prompt": prompt, "question": _question(item), "answer": item.answer or "", **rest}


def _question(item: Item) -> str:
    """Return the question without the template; of a conversation the last message of the user."""
    users = [str(message["content"]) for message in item.messages if message["role"] == "user"]
    return users[-1] if users else item.question


def _conversation(item: Item, prompts: Prompts) -> list[dict[str, Any]]:
    """Return the messages of an item; its own system message takes the place of that of the recipe."""
    messages = [dict(message) for message in item.messages] or [{"role": "user", "content": item.question}]
    if messages[-1]["role"] == "user":
        messages[-1]["content"] = _filled(messages[-1]["content"], prompts)
    has_system = messages[0]["role"] in SYSTEM_ROLES or prompts.system is None
    return messages if has_system else [{"role": "system", "content": prompts.system}, *messages]


def _filled(question: str, prompts: Prompts) -> str:
    return filled(prompts.template, {"question": question})
