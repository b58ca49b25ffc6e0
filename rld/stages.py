"""The kinds of stages that a recipe can chain.

A stage is a frozen model: its fields are the recipe's keys, and calling it with the `Parts` of a run does the work.
It imports nothing heavy, because `Parts` (built in `build.py`) brings the models, the data and the trainers.

To add one, write a class with its own `run` and `__call__`, and put its name in `AnyStage`, the last line.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from rld.controllers import AnyController, Gap
from rld.divergences import JSD, AnyDivergence
from rld.features import AnyFeature, Cosine


class Part(BaseModel):
    """A piece of a recipe: unknown keys, NaN and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Parts(Protocol):
    """What a run hands to its stages; `build.py` implements it."""

    def fine_tune(self, stage: Sft) -> None: ...

    def distill(self, stage: Distill) -> None: ...


class _Stage(Part):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """What later stages call this one's result; also the name of its folder."""
    trainer: dict[str, Any] = {}
    """Passed on to TRL's configuration of the stage's trainer."""
    lora: dict[str, Any] | None = None
    """Options of `peft.LoraConfig`: train an adapter, which is merged into the stage's result. None: train all."""
    checkpoint_every: int = Field(100, gt=0)
    """Optimiser steps between checkpoints: the most that a crash can lose."""


class Sft(_Stage):
    """Supervised fine-tuning on gold answers: makes a specialist teacher, or gives a student its first steps."""

    run: Literal["sft"]
    model: str
    """What to train: a name in `models`, an earlier stage, a hub id or a folder."""
    skills: list[str] | None = None
    """Skills to train on, in equal shares. None: all."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch: int = Field(32, gt=0)
    """Rows per optimiser step, over all processes and accumulation steps."""

    def __call__(self, parts: Parts) -> None:
        parts.fine_tune(self)


class TeacherSpec(Part):
    """One teacher of a distillation stage."""

    model: str
    """A name in `models`, an earlier stage, a hub id or a folder."""
    skills: list[str] | None = None
    """The skills that it teaches. None: wherever it proves better than the student."""
    probe: int = Field(32, ge=0)
    """Training prompts per skill that it answers before the stage, which show where it is right. 0: trust it."""
    init: dict[str, Any] = {}
    """Arguments of `from_pretrained`, such as dtype, device_map or quantization_config (a mapping)."""
    adapter: str | None = None
    """A folder or hub id of a PEFT adapter on the model. Teachers with the same model and init share its weights."""
    offload: bool = False
    """Whether the weights rest in CPU memory and are on the GPU only while the teacher scores: slower, and smaller."""

    @property
    def base(self) -> str:
        """The same for teachers that share one copy of a model's weights."""
        return json.dumps([self.model, self.init], sort_keys=True, default=str)


class PolicySignal(Part):
    """Reinforcement with TRL's GRPO on the student's own completions."""

    teacher_reward: float = Field(0.0, ge=0)
    """Weight c of the teacher-scored reward `c * clamp(delta / s, -10, 10)` added to each token's advantage, where
    delta is the teachers' mean log-probability of the sampled token minus the student's, and s the skill's running
    spread of delta. 0: verifiers only."""


class ResponseSignal(Part):
    """Match the teachers' token distributions over the whole vocabulary."""

    divergence: AnyDivergence = JSD()


class FeatureSignal(Part):
    """Match the teachers' hidden states through a learned projection."""

    loss: AnyFeature = Cosine()


class SignalSpecs(Part):
    """Which signals take part; a signal that is not named is off."""

    policy: PolicySignal | None = None
    response: ResponseSignal | None = None
    feature: FeatureSignal | None = None


class CurriculumSpec(Part):
    """Which curriculum picks skill and level of the next prompt."""

    use: str = "fixed:Uniform"
    """A shipped curriculum as file:Class, or your own as ./file.py:Class."""
    options: dict[str, Any] = {}
    """Keyword arguments of the class."""


class Rollout(Part):
    """What the student generates for one update."""

    prompts: int = Field(8, gt=0)
    """Prompts per update, over all processes."""
    completions: int = Field(8, ge=2)
    """Completions per prompt: the group whose rewards are compared."""
    temperature: float = Field(1.0, gt=0)


class Distill(_Stage):
    """The main job: one student, several teachers and verifiers, one loop, weights set by a controller."""

    run: Literal["distill"]
    student: str
    """What to train: a name in `models`, an earlier stage, a hub id or a folder."""
    teachers: dict[str, TeacherSpec] = {}
    """By name. None: plain reinforcement."""
    skills: list[str] | None = None
    """Skills to train on. None: all."""
    signals: SignalSpecs = SignalSpecs(policy=PolicySignal(), response=ResponseSignal())
    controller: AnyController = Gap()
    curriculum: CurriculumSpec = CurriculumSpec()
    rollout: Rollout = Rollout()
    steps: int = Field(gt=0)
    """Optimiser steps (updates)."""

    def __call__(self, parts: Parts) -> None:
        parts.distill(self)


AnyStage = Annotated[Sft | Distill, Field(discriminator="run")]
