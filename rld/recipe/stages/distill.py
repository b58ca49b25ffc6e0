"""The options of a `distill` stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from rld.controllers import AnyController
from rld.controllers.gap import GapController
from rld.controllers.retention_rule import RetentionRule
from rld.recipe.perturbations import AnyChange
from rld.recipe.plugins import AuditSpec, CurriculumSpec
from rld.recipe.signals import PolicySignal, ResponseSignal, SignalSpecs
from rld.recipe.stages.base import Stage
from rld.recipe.teachers import AnyTeacher, CacheSpec, ServedTeacher, TeacherSpec
from rld.utils.options import FrozenOptions


class Rollout(FrozenOptions):
    """What the student generates for one update."""

    prompts: int = Field(8, gt=0)
    """Prompts per update, over all processes."""
    completions: int = Field(8, ge=1)
    """Completions per prompt: the group whose rewards are compared."""
    gold: int = Field(0, ge=0)
    """Of these, the gold answer itself instead of the student's own: it teaches where the student never succeeds, by
    an advantage that fades as the student does (Yan et al. 2025, LUFFY, without its reshaping). All of them: teachers
    teach on gold answers alone, nothing is generated, and `policy` must be off; one completion is enough then."""
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _groups_are_possible(self) -> Rollout:
        if self.gold > self.completions:
            raise ValueError(f"gold ({self.gold}) should be at most completions ({self.completions})")
        if self.completions == 1 and (not self.gold or self.prompts % 2):
            raise ValueError("one completion has no other to be compared with: it takes gold: 1, and even prompts")
        return self


class Distill(Stage):
    """The main job: one student, several teachers and verifiers, one loop, weights set by a controller."""

    run: Literal["distill"]
    student: str
    """What to train: a name in `models`, an earlier stage, a hub id or a folder."""
    teachers: dict[str, AnyTeacher] = {}
    """By name. None: plain reinforcement."""
    skills: list[str] | None = None
    """Skills to train on. None: all."""
    signals: SignalSpecs = SignalSpecs(policy=PolicySignal(), response=ResponseSignal())
    gate: Literal["prompt", "skill"] = "prompt"
    """Where a teacher may teach. `prompt`: on the prompts that it answers rightly itself, by the first of the rewards.
    `skill`: on all prompts of the skills where the controller gives it weight, for rewards that verify nothing."""
    teach_on: Literal["all", "failed"] = "all"
    """The completions that teachers teach on. `failed`: those that the first reward does not give 1 (the mask of Xu et
    al. 2025, KDRL); the others cost no forward of a teacher."""
    controller: AnyController = GapController()
    curriculum: CurriculumSpec = CurriculumSpec()
    rollout: Rollout = Rollout()
    retain: RetentionRule | None = None
    """Skills that the student must not forget. None: it may."""
    audit: AuditSpec | None = None
    """A check on the first of the rewards. None: it is believed."""
    cache: CacheSpec | None = None
    """Keep on disk what teachers say, where every completion is a gold answer; with the feature signal hidden states
    too. None: each run asks them anew."""
    changes: list[AnyChange] = []
    """What changes on purpose while the stage trains, to see how a controller takes it."""
    steps: int = Field(gt=0)
    """Optimiser steps (updates)."""

    @model_validator(mode="after")
    def _fixed_completions(self) -> Distill:
        is_fixed = self.rollout.gold == self.rollout.completions
        if is_fixed and self.signals.policy is not None:
            raise ValueError("with gold answers alone there are no attempts to reinforce: leave signals.policy out")
        if self.cache is not None and not is_fixed:
            raise ValueError("cache keeps what teachers say of gold answers: set rollout.gold to rollout.completions")
        return self

    @model_validator(mode="after")
    def _lists_suffice(self) -> Distill:
        response, sampled = self.signals.response, self.rollout.temperature
        for name, spec in self.teachers.items():
            is_served = isinstance(spec, ServedTeacher)
            if not is_served and self.cache is None:
                continue
            where = "a server" if is_served else "a cache"
            if self.signals.feature is not None and is_served:
                raise ValueError(f"teacher '{name}': {where} gives no hidden states, and this stage matches features")
            if response is not None and response.temperature not in (None, sampled):
                own = response.temperature
                raise ValueError(f"teacher '{name}': {where} has the rollout's temperature {sampled:g}, not {own:g}")
            if isinstance(spec, TeacherSpec) and spec.align is not None:
                raise ValueError(f"teacher '{name}': a cache holds the student's tokens, so none with align is cached")
            if isinstance(spec, ServedTeacher) and spec.url.rstrip("/").endswith("/v1") and sampled != 1:
                kind = "an OpenAI-compatible endpoint"
                raise ValueError(f"teacher '{name}': {kind} scores at temperature 1, and the rollout's is {sampled:g}")
        return self

    @property
    def loaded(self) -> dict[str, TeacherSpec]:
        """The teachers that are loaded beside the student."""
        return {name: spec for name, spec in self.teachers.items() if isinstance(spec, TeacherSpec)}

    def protected(self, skills: Iterable[str]) -> list[str]:
        """Return which of a recipe's skills the student must not forget."""
        trained = skills if self.skills is None else self.skills
        kept = self.retain.skills if self.retain is not None else []
        return [skill for skill in skills if skill not in trained] if kept is None else kept

    @property
    def trained_model(self) -> str:
        return self.student

    @property
    def has_cache(self) -> bool:
        return self.cache is not None
