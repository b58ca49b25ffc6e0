"""The schema of a whole recipe.

What only a look at the whole recipe can tell, such as a stage that names no model, is checked in `checks.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from rld.recipe.models import AnyModel, CharacterTokenizer, NewModel
from rld.recipe.plugins import RewardSpec, VerifierSpec
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
    """Rewards of the policy signal."""
    verifier: VerifierSpec | None = None
    """Decides which answers are correct: where it gives 1, an answer is. In training, that counts attempts, and the
    gate, curricula and `distill_on` go by it. It adds nothing to the rewards. None: the first of the rewards."""
    judge: VerifierSpec | None = None
    """Decides which answers are correct outside of training: in held-out scores, probes of teachers, `verify` of
    fine-tuning and `rld evaluate`. None: the audit of the last stage that has one, else the verifier. One that reads a
    model or is asynchronous can't be called there: answers are then compared with the gold answers."""
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

    @property
    def verifier_in_use(self) -> VerifierSpec:
        """The function that decides in training which answers are correct."""
        return self.verifier or VerifierSpec(use=self.rewards[0].use, options=self.rewards[0].options)

    @property
    def has_own_verifier(self) -> bool:
        """Whether the verifier is another function than the first of the rewards."""
        first = self.rewards[0]
        return self.verifier is not None and (self.verifier.use, self.verifier.options) != (first.use, first.options)

    @property
    def judge_in_use(self) -> VerifierSpec:
        """The function that decides outside of training which answers are correct."""
        audits = [stage.audit_in_use for stage in self.stages if stage.audit_in_use is not None]
        return self.judge or (audits[-1] if audits else self.verifier_in_use)

    def skill_prompts(self, skill: str) -> Prompts:
        """Return how the questions of a skill become prompts."""
        return self.skills[skill].prompts or self.prompts

    @property
    def prompt_style(self) -> Literal["plain", "chat"]:
        """The style of all prompts."""
        return self.skill_prompts(next(iter(self.skills))).style
