"""The recipe's schema: every option, its range and its default.

What only a look at the whole recipe can tell, such as a stage that names no model, is checked in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rld.stages import AnyStage, Part, told_by_key

Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
"""What metrics, folders and overrides can be called by."""


class NewModel(Part):
    """A model with random weights, built from a transformers configuration."""

    new: str
    """The configuration's `model_type`, such as llama or qwen2."""
    config: dict[str, Any]
    """The configuration's options, such as hidden_size and num_hidden_layers."""


class PretrainedModel(Part):
    """Pre-trained weights and how to load them."""

    path: str
    """A hub id or a folder."""
    init: dict[str, Any] = {}
    """Arguments of `from_pretrained`, such as dtype or attn_implementation."""


class CharacterTokenizer(Part):
    """One token per character: enough for models that are trained from scratch on short strings."""

    characters: str = Field(min_length=1)


class Prompts(Part):
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


class _Skill(Part):
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


class RewardSpec(Part):
    """One reward function and its weight in the sum."""

    use: str
    """A shipped reward as file:function, or your own as ./file.py:function."""
    weight: float = 1.0
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""


AnyModel = Annotated[
    Annotated[NewModel, Tag("NewModel")]
    | Annotated[PretrainedModel, Tag("PretrainedModel")]
    | Annotated[str, Tag("str")],
    Discriminator(
        told_by_key(new=NewModel, path=PretrainedModel),
        custom_error_type="unknown_kind",
        custom_error_message="should be a hub id or a folder, or a mapping with the key 'path' or 'new'",
    ),
]

AnySkill = Annotated[
    Annotated[GeneratedSkill, Tag("GeneratedSkill")]
    | Annotated[ReasoningGymSkill, Tag("ReasoningGymSkill")]
    | Annotated[FileSkill, Tag("FileSkill")],
    Discriminator(
        told_by_key(generator=GeneratedSkill, reasoning_gym=ReasoningGymSkill, rows=FileSkill),
        custom_error_type="unknown_kind",
        custom_error_message="should be a mapping with one of the keys 'generator', 'reasoning_gym' and 'rows'",
    ),
]


class Recipe(Part):
    """A whole run: what is to be learnt, from what, in which stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Also the name of the run's folder."""
    seed: int = Field(0, ge=0)
    models: dict[Name, AnyModel] = {}
    """Models that stages refer to by name; text is a hub id or a folder."""
    tokenizer: CharacterTokenizer | None = None
    """For models with random weights. None: each model's own."""
    prompts: Prompts = Prompts()
    skills: dict[Name, AnySkill] = Field(min_length=1)
    """What is to be learnt, by name."""
    rewards: list[RewardSpec] = Field([RewardSpec(use="answers:exact_match")], min_length=1)
    """Rewards of the policy signal. The first is the verifier: where it gives 1, the completion counts as a success."""
    max_new_tokens: int = Field(64, gt=0)
    """Tokens that an answer may take, in training and when a model is scored."""
    stages: list[AnyStage] = Field(min_length=1)
    """Run in this order; the last one's model is the run's student."""

    @field_validator("skills")
    @classmethod
    def _something_is_scored(cls, skills: dict[str, Any]) -> dict[str, Any]:
        if not any(skill.held_out for skill in skills.values()):
            raise ValueError("one skill at least should have held_out above 0, or no model is ever scored")
        return skills
