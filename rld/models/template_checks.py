"""Checks of a chat template and its arguments, and notices about texts that models read otherwise than users expect."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from rld.errors import RecipeError
from rld.models import chat_template as templates
from rld.models.prompting import PromptEncoder
from rld.models.text_forms import excerpt
from rld.types import Row
from rld.utils.suggestions import WORDS_OF_BOOLEANS, hint

_TEMPLATE_NAMES = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
"""What transformers gives to a template, beside the names of special tokens."""

_NUM_ROWS = 64
"""Rows whose texts are looked at."""

_QUESTION, _ANSWER = {"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}


def require_options_read(encoder: PromptEncoder) -> None:
    """Refuse arguments of a chat template that it never reads or misreads: `enable_thinkin`, `enable_thinking: off`.

    Raises:
        RecipeError: there are some, or rld sets them itself.
    """
    template = templates.template_of(encoder.tokenizer, encoder.chat_template, encoder.tools)
    if template is None or not encoder.chat_template_kwargs:
        return
    signature = inspect.signature(PreTrainedTokenizerBase.apply_chat_template)
    reserved_names = signature.parameters.keys() - {"documents", "kwargs"}
    names = _names(template)
    for key, value in encoder.chat_template_kwargs.items():
        if key in reserved_names or key in _TEMPLATE_NAMES - {"documents"}:
            raise RecipeError(f"chat_template_kwargs.{key}: rld sets it itself; leave it out")
        if names is not None and key not in names | {"documents"}:
            options = sorted(names - _TEMPLATE_NAMES - {*encoder.tokenizer.special_tokens_map})
            listed = f"; it reads {', '.join(options)}" if options else "; it reads no further arguments"
            name = encoder.tokenizer.name_or_path or type(encoder.tokenizer).__name__
            raise RecipeError(
                f"chat_template_kwargs.{key}: the chat template of {name!r} never reads it"
                f"{hint(key, options) or listed}"
            )
        if _stands_for_a_boolean(key, value, template):
            raise RecipeError(f"chat_template_kwargs.{key} should be true or false, not {value!r}, to its template")


def _stands_for_a_boolean(key: str, value: Any, template: str) -> bool:
    """Whether a value that is no boolean means one, which a template takes for another: in Jinja all text is true."""
    if isinstance(value, str):
        return value.strip().lower() in WORDS_OF_BOOLEANS and not re.search(
            rf"""['"]{re.escape(value)}['"]""", template
        )
    is_tested = re.search(rf"\b{re.escape(key)}\s+is\s+(not\s+)?(true|false)\b", template)
    return isinstance(value, int) and not isinstance(value, bool) and is_tested is not None


def _names(template: str) -> set[str] | None:
    """Return the names that a template reads and does not set everywhere; None where that is unknown."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"])
    # transformers marks the assistant's part by a block of its own, which may be left out to find names
    text = template.replace("{%- generation", "{%- if true").replace("{% generation", "{% if true")
    try:
        return meta.find_undeclared_variables(environment.parse(text.replace("endgeneration", "endif")))
    except (TemplateError, RecursionError):  # rendering tells of it
        return None


def notices(encoder: PromptEncoder, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what a user may not expect of the texts that a model reads, one sentence each.

    Args:
        encoder: The model's.
        rows: Rows with a `prompt` and an `answer`, of which the first are looked at.
    """
    rows = list(itertools.islice(rows, _NUM_ROWS))
    if any(not isinstance(row["prompt"], str) for row in rows):
        yield from _of_template(encoder)
    yield from _of_border(encoder, rows)


def _of_template(encoder: PromptEncoder) -> Iterator[str]:
    name = encoder.tokenizer.name_or_path or type(encoder.tokenizer).__name__
    template = templates.template_of(encoder.tokenizer, encoder.chat_template, encoder.tools) or ""
    try:
        prompt = encoder.render([_QUESTION])
        conversation = _rendered(encoder, [_QUESTION, _ANSWER])
    except templates.RefusedConversation:  # no prompt of a run is like this one
        return
    opened = prompt.partition("QUESTION")[2]
    if "ANSWER" in conversation and not conversation.startswith(prompt):
        between = conversation.partition("QUESTION")[2].partition("ANSWER")[0]
        yield (
            f"the chat template of {name!r} opens an answer by {excerpt(opened)}, and shows an earlier answer behind "
            f"{excerpt(between)}: rld trains and scores answers behind the former; a model that was fine-tuned on "
            "whole conversations has learnt the latter, and scores less"
        )
    is_set = any(isinstance(value, str) and value in prompt for value in encoder.chat_template_kwargs.values())
    is_dated = any(templates.DATE.strftime(day) in prompt for day in _DAYS)
    between = conversation.removeprefix(prompt).partition("ANSWER")[0].strip()
    if conversation.startswith(prompt) and "ANSWER" in conversation and between:
        yield (
            f"the chat template of {name!r} puts {excerpt(between)} between prompt and answer, which the model writes "
            "itself: gold answers and fine-tuning on them teach it to answer without"
        )
    if templates.reads_the_date(template) and is_dated and not is_set:
        yield (
            f"the chat template of {name!r} prints the date: it is {templates.DATE:%d %B %Y} in all prompts of rld, "
            "and today's date where the model is used elsewhere"
        )


_DAYS = "%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y"


def _rendered(encoder: PromptEncoder, messages: Sequence[Any]) -> str:
    return templates.render(
        encoder.tokenizer,
        messages,
        chat_template=encoder.chat_template,
        tools=encoder.tools,
        chat_template_kwargs=encoder.chat_template_kwargs,
        add_generation_prompt=False,
    )


def _of_border(encoder: PromptEncoder, rows: Sequence[Row]) -> Iterator[str]:
    """Yield a notice of prompts whose last characters the tokenizer would join with the answer."""
    joined = []
    for row in rows:
        answer = str(row.get("answer") or "")
        try:
            prompt = encoder.render(row["prompt"])
        except templates.RefusedConversation:  # which is told of the row
            continue
        apart = encoder.encode(row["prompt"])
        is_plain = isinstance(row["prompt"], str)
        together = encoder.tokenizer(prompt + answer, add_special_tokens=is_plain)["input_ids"]
        if answer and together[: len(apart)] != apart and not encoder.spells_special_tokens(row["prompt"]):
            joined.append(prompt)
    if joined:
        ends_with_space = joined[0] != joined[0].rstrip()
        fix = "; let the prompt end without white space, which the answer then begins with" if ends_with_space else ""
        yield (
            f"{len(joined)} of {len(rows)} prompts, such as {excerpt(joined[0][-40:])}, end with characters that the "
            "tokenizer joins with the answer to one token where it reads both together; a model reads them as tokens "
            f"of their own, which it has seldom seen before an answer{fix}"
        )
