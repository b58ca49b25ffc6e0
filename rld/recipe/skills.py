"""The options of a skill: where its rows come from, and how a question becomes a prompt."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rld.utils.options import FrozenOptions, union_by_key


class Prompts(FrozenOptions):
    """How a question becomes a prompt."""

    style: Literal["plain", "chat"] = "plain"
    """`plain`: the text itself; `chat`: a user message in the model's own chat template."""
    system: str | None = None
    """The system message of a chat."""
    template: str = "{question}"
    """Text around the question."""

    @field_validator("template")
    @classmethod
    def _holds_the_question(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("it should contain {question}, or every prompt is the same")
        return template

    @model_validator(mode="after")
    def _system_needs_chat(self) -> Prompts:
        if self.system is not None and self.style == "plain":
            raise ValueError("a system message needs style: chat")
        return self


class _Skill(FrozenOptions):
    held_out: int = Field(100, ge=0)
    """Rows that no training sees and every score is measured on. 0: the skill is trained on, and never scored."""


class GeneratedSkill(_Skill):
    """Rows from a function `(rng, **level) -> (question, answer)`."""

    generator: str
    """The function, as ./file.py:name relative to the recipe, or package.module:name."""
    levels: list[dict[str, Any]] = Field([{}], min_length=1)
    """The function's keyword arguments per level, the easiest first."""


class ReasoningGymSkill(_Skill):
    """Rows from a reasoning-gym task, scored by its own verifier with exact credit."""

    reasoning_gym: str
    """The task's name in reasoning-gym, such as chain_sum."""
    levels: list[dict[str, Any]] = Field([{}], min_length=1)
    """The task's configuration per level, the easiest first."""


class FileSkill(_Skill):
    """Rows from a JSON Lines or CSV file with columns `question`, `answer` and, where it has them, `level`."""

    rows: str
    """The file, relative to the recipe."""


AnySkill = Annotated[
    Annotated[GeneratedSkill, Tag("GeneratedSkill")]
    | Annotated[ReasoningGymSkill, Tag("ReasoningGymSkill")]
    | Annotated[FileSkill, Tag("FileSkill")],
    Discriminator(
        union_by_key(generator=GeneratedSkill, reasoning_gym=ReasoningGymSkill, rows=FileSkill),
        custom_error_type="unknown_kind",
        custom_error_message="should be a mapping with one of the keys 'generator', 'reasoning_gym' and 'rows'",
    ),
]
