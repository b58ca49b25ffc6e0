"""Conversations as text, by the chat template of a tokenizer."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from rld.errors import RecipeError
from rld.utils.user_calls import UserCodeTimeout, user_code

DATE = datetime.datetime(2024, 7, 26)
"""What `strftime_now` of a template says the date is: one for all readers, runs and days."""

RENDER_SECONDS = 10.0
"""Seconds that a template may take for a conversation; one of 100,000 messages takes less than a second."""

_MAX_CHARACTERS = 20_000_000
"""Characters that a template may write for a conversation, several times what any model reads."""

_DIRECTIVES = [*"aAbBcdDeFHIjmMpSTUwxXyYZ", "-d", "-m", "-H", "-I", "-M"]
_MARK = "ANSWER"
"""The answer of a rendered conversation whose text is searched for what stands behind the answer."""


class RefusedConversation(RecipeError):
    """A chat template raises an error about a conversation."""


def template_of(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, tools: Sequence[Any] | None = None
) -> str | None:
    """Return the template that a tokenizer renders with: `chat_template`, else its own, None if it has none."""
    if chat_template is None and not tokenizer.chat_template:
        return None
    try:
        return tokenizer.get_chat_template(chat_template, list(tools) if tools else None)
    except ValueError:  # several templates, none of which is the default
        return None


def reads_the_date(template: str) -> bool:
    """Whether a template may print today's date."""
    return "strftime_now" in template


def thinks(template: str) -> bool:
    """Whether a template knows of thoughts in front of an answer."""
    return "</think>" in template or "enable_thinking" in template


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_template: str | None = None,
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any],
    add_generation_prompt: bool = True,
) -> str:
    """Return a conversation as text.

    Args:
        tokenizer: Its template is used unless `chat_template` is given.
        messages: The conversation.
        chat_template: In Jinja.
        tools: Functions or JSON schemas that the template describes.
        chat_template_kwargs: Further arguments of the template.
        add_generation_prompt: Whether the text ends with what opens the assistant's answer.

    Raises:
        RecipeError: there is no template, it is no Jinja, or it takes too much time or memory.
        RefusedConversation: it refuses the conversation.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    template = template_of(tokenizer, chat_template, tools)
    if template is None:
        raise RecipeError(f"the prompts are conversations, but the tokenizer of {name!r} has no chat template")
    with _mistakes_of(name, messages, tools), user_code(RENDER_SECONDS):
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=_with_fixed_date(template),
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **chat_template_kwargs,
        )
    if len(text) > _MAX_CHARACTERS:
        raise RecipeError(
            f"the chat template of {name!r} writes {len(text):,} characters for a conversation; {_MAX_CHARACTERS:,} "
            "are the limit"
        )
    return str(text)


@contextmanager
def _mistakes_of(name: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> Iterator[None]:
    """Tell what goes wrong while the template of the tokenizer of this name is rendered.

    Raises:
        RecipeError: the template is no Jinja, or takes too much time or memory.
        RefusedConversation: it refuses the conversation.
    """
    try:
        yield
    except UserCodeTimeout as error:
        raise RecipeError(f"the chat template of {name!r} {error}; has it a loop without end?") from error
    except MemoryError as error:
        raise RecipeError(f"the chat template of {name!r} writes more than there is memory for") from error
    except TemplateSyntaxError as error:
        raise RecipeError(f"the chat template of {name!r} is no Jinja: {error}") from error
    except (
        *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
        RecursionError,  # it calls itself without end, or is nested too deep
    ) as error:
        # a template that reads what a message or tool has not raises what Python raises
        roles = [message.get("role") for message in messages]
        fix = "; leave out `system`, or write it into `template`" if "system" in roles else ""
        fix = "; does each tool have what the template reads of it, such as `function`?" if tools else fix
        raise RefusedConversation(
            f"the chat template of {name!r} refuses a conversation of {', '.join(map(str, roles))}: {error}{fix}"
        ) from error


def behind_the_answer(
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | None = None,
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any],
) -> str:
    """Return the text that a template puts behind the assistant's answer; "" where it shows no answer."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = render(
            tokenizer,
            messages,
            chat_template=chat_template,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            add_generation_prompt=False,
        )
    except RefusedConversation:  # it takes no such conversation, which no prompt needs
        return ""
    return text.rpartition(_MARK)[2] if _MARK in text else ""


def _with_fixed_date(template: str) -> str:
    """Return a template whose `strftime_now` gives `DATE`: prompts must not change overnight."""
    if not reads_the_date(template):
        return template
    replaced = "".join(f"|replace('%{key}', '{DATE.strftime('%' + key)}')" for key in _DIRECTIVES)
    # the newline belongs to the macro: a template's environment trims the first one behind a block
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"
