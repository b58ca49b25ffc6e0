"""The options of prompts: how a question is turned into one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rld.utils.options import FrozenOptions, OptionError
from rld.utils.templates import question_problem


class Prompts(FrozenOptions):
    """How a question is turned into a prompt."""

    style: Literal["plain", "chat"] = "plain"
    """`plain`: the text itself. `chat`: a user message, formatted with the model's chat template."""
    system: str | None = None
    """The system message, with `style: chat`. None: no system message."""
    template: str = "{question}"
    """Text of the prompt; `{question}` is replaced by the question."""
    chat_template_kwargs: dict[str, Any] = {}
    """Further arguments of the model's chat template, such as `enable_thinking: false`. All skills share them."""
    strip_thinking: bool | Annotated[list[str], Field(min_length=2, max_length=2)] = False
    """Whether rewards, gate, probes and scores read answers without their thinking part; one without an end leaves an
    empty answer. Its markers are those of the chat template, or these two, as in `[<think>, </think>]`. All skills
    share it."""

    @field_validator("template")
    @classmethod
    def _holds_the_question(cls, template: str) -> str:
        problem = question_problem(template)
        if problem is not None:
            raise ValueError(problem)
        return template

    @model_validator(mode="after")
    def _system_needs_chat(self) -> Prompts:
        if self.system is not None and self.style == "plain":
            raise OptionError("a system message needs style: chat", "system")
        if self.chat_template_kwargs and self.style == "plain":
            raise OptionError("only chats have a template of the model: set style: chat", "chat_template_kwargs")
        return self
