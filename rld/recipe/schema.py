"""The schema of a whole recipe.

What only a look at the whole recipe can tell, such as a stage that names no model, is checked in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from rld.recipe.models import AnyModel, CharacterTokenizer, NewModel
from rld.recipe.plugins import RewardSpec
from rld.recipe.skills import AnySkill, Prompts
from rld.recipe.stages import AnyStage
from rld.utils.options import FrozenOptions

Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
"""What metrics, folders and overrides can be called by."""


class Recipe(FrozenOptions):
    """A whole run: what is to be learnt, from what, in which stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Also the name of the run's folder."""
    seed: int = Field(0, ge=0)
    models: dict[Name, AnyModel] = {}
    """Models that stages refer to by name; text is a hub id or a folder."""
    tokenizer: CharacterTokenizer | None = None
    """For models with random weights. None: each model's own."""
    prompts: Prompts = Prompts()
    """How questions become prompts; a skill may have its own."""
    skills: dict[Name, AnySkill] = Field(min_length=1)
    """What is to be learnt, by name."""
    rewards: list[RewardSpec] = Field([RewardSpec(use="answers:exact_match")], min_length=1)
    """Rewards of the policy signal. The first is the verifier: where it gives 1, the completion counts as a success."""
    max_new_tokens: int = Field(64, gt=0)
    """Tokens that an answer may take, in training and when a model is scored."""
    trainer: dict[str, Any] = {}
    """Options of TRL's configurations that all stages share; a stage's own `trainer` goes before it, key by key."""
    stages: list[AnyStage] = Field(min_length=1)
    """Run in this order; the last one's model is the run's student."""

    @field_validator("skills")
    @classmethod
    def _something_is_scored(cls, skills: dict[str, Any]) -> dict[str, Any]:
        if not any(skill.held_out for skill in skills.values()):
            raise ValueError("one skill at least should have held_out above 0, or no model is ever scored")
        return skills

    @model_validator(mode="after")
    def _prompts_have_one_style(self) -> Recipe:
        for name in self.skills:
            style = self.skill_prompts(name).style
            if style != self.prompt_style:
                raise ValueError(f"prompts of skill '{name}' have style {style}, and others {self.prompt_style}")
        return self

    @model_validator(mode="after")
    def _complete_trainers(self) -> Recipe:
        """Give each stage all options of its trainer, so that the resolved recipe shows them."""
        stages = [stage.with_trainer(self.trainer, self._is_new(stage.student)) for stage in self.stages]
        object.__setattr__(self, "stages", stages)
        return self

    def _is_new(self, reference: str) -> bool:
        """Tell whether a reference leads, through earlier stages, to a model that begins with random weights."""
        for stage in reversed(self.stages):
            reference = stage.student if stage.name == reference else reference
        return isinstance(self.models.get(reference), NewModel)

    def skill_prompts(self, skill: str) -> Prompts:
        """Return how the questions of a skill become prompts."""
        return self.skills[skill].prompts or self.prompts

    @property
    def prompt_style(self) -> Literal["plain", "chat"]:
        """The style of all prompts."""
        return self.skill_prompts(next(iter(self.skills))).style
