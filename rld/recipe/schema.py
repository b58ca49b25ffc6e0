"""The schema of a whole recipe.

What only a look at the whole recipe can tell, such as a stage that names no model, is checked in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import Field, field_validator

from rld.recipe.models import AnyModel, CharacterTokenizer
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
