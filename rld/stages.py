"""The kinds of stages that a recipe can chain.

A stage is a frozen model: its fields are the recipe's keys, and calling it with the `Parts` of a run does the work.
It imports nothing heavy, because `Parts` (built in `build.py`) brings the models, the data and the trainers.

To add one, write a class with its own `run` and `__call__`, and put its name in `AnyStage`, the last line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from rld.combine import AnyCombination, AnyTokenWeights, Mixture
from rld.controllers import AnyController
from rld.divergences import JSD, AnyDivergence
from rld.features import AnyFeature, Cosine
from rld.gap import Gap
from rld.hints import nearest
from rld.retention import Retention
from rld.types import Align

_MAX_ROWS = 20_000


class Part(BaseModel):
    """A piece of a recipe: unknown keys, NaN and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def told_by_key(**kinds: type[Part]) -> Callable[[Any], str | None]:
    """Return what tells the kinds of a union apart: which has the key that only it has, or one spelt much like it."""

    def kind(value: Any) -> str | None:
        if isinstance(value, dict):
            keys = [key for key in value if isinstance(key, str)]
            found = next((key for key in kinds if key in keys), None)
            found = found or next(filter(None, (nearest(key, kinds) for key in keys)), None)
            return kinds[found].__name__ if found else None
        return type(value).__name__

    return kind


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
    evaluate_every: int | None = Field(None, gt=0)
    """Optimiser steps between scorings of the student on the held-out rows, logged as `score/<skill>`; their FLOPs are
    not counted. None: before and after the stage only."""
    max_flops: float | None = Field(None, gt=0)
    """Stop after the step by which the stage has spent this many FLOPs, teachers, gate and probes included. The
    learning rate's schedule goes by `steps` all the same. None: all steps."""


class Sft(_Stage):
    """Supervised fine-tuning on gold answers, or on a teacher's: makes specialists, or gives a student first steps."""

    run: Literal["sft"]
    model: str
    """What to train: a name in `models`, an earlier stage, a hub id or a folder."""
    skills: list[str] | None = None
    """Skills to train on, in equal shares. None: all."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch: int = Field(32, gt=0)
    """Rows per optimiser step, over all processes and accumulation steps."""
    rows: int | None = Field(None, gt=0)
    """Rows to train on, over all skills, again and again. None: as many as the steps take, 20,000 at most."""
    shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How many rows a skill gets relative to the others, by name; one that is not named counts as 1."""
    teacher: str | None = None
    """Learn this model's answers instead of gold ones (sequence-level distillation, Kim and Rush 2016): a name in
    `models`, an earlier stage, a hub id or a folder. Its tokenizer may be any."""
    verify: bool = True
    """Learn only those of the teacher's answers that are right, as often as to keep the skills' shares."""

    @property
    def num_rows(self) -> int:
        """Rows to train on, over all skills; the shares of the skills are rounded to whole rows."""
        return min(self.rows or _MAX_ROWS, self.steps * self.batch)

    def __call__(self, parts: Parts) -> None:
        parts.fine_tune(self)


class _Teacher(Part):
    skills: list[str] | None = None
    """The skills that it teaches. None: wherever it proves better than the student."""
    probe: int = Field(32, ge=0)
    """Training prompts per skill that it answers before the stage, which show where it is right. 0: trust it."""


class ServedTeacher(_Teacher):
    """A teacher on a server, with the student's tokenizer: it hands over its likeliest tokens, not its states."""

    url: str = Field(pattern=r"^https?://[^/]")
    """Where `rld serve-teacher` says it is, or an OpenAI-compatible endpoint with vLLM's `prompt_logprobs`, whose
    address ends in `/v1`; that one scores at temperature 1."""
    top_k: int = Field(64, ge=1, le=255)
    """Tokens that it names at each place; all others are one outcome."""
    optional: bool = False
    """Whether training goes on without it when it stops answering. Otherwise the run stops, and `--resume` goes on."""
    patience: float = Field(60.0, gt=0)
    """Seconds for which it is asked again before it counts as down."""
    token_variable: str = "RLD_TEACHER_TOKEN"
    """The environment variable with its bearer token, if it wants one."""
    fingerprint: str | None = None
    """What `rld serve-teacher` prints: weights other than these are refused. None: those that it starts with."""


class TeacherSpec(_Teacher):
    """A teacher that is loaded beside the student."""

    model: str
    """A name in `models`, an earlier stage, a hub id or a folder."""
    init: dict[str, Any] = {}
    """Arguments of `from_pretrained`, such as dtype, device_map or quantization_config (a mapping)."""
    adapter: str | None = None
    """A folder or hub id of a PEFT adapter on the model. Teachers with the same model and init share its weights."""
    offload: bool = False
    """Whether the weights rest in CPU memory and are on the GPU only while the teacher scores: slower, and smaller."""
    align: Align | None = None
    """For a teacher with another tokenizer: teach by the `likelihood` of spans of text that both tokenizers can say, or
    by the `vocabulary` that both have and the shape of the rest. None: it has the student's tokenizer."""
    chat_template: str | None = None
    """A chat template in Jinja, for a teacher that comes without one. None: its tokenizer's."""

    @property
    def base(self) -> str:
        """The same for teachers that share one copy of a model's weights."""
        return json.dumps([self.model, self.init, self.chat_template], sort_keys=True, default=str)


AnyTeacher = Annotated[
    Annotated[TeacherSpec, Tag("TeacherSpec")] | Annotated[ServedTeacher, Tag("ServedTeacher")],
    Discriminator(
        told_by_key(url=ServedTeacher, model=TeacherSpec),
        custom_error_type="unknown_kind",
        custom_error_message="should be a mapping with one of the keys 'model' and 'url'",
    ),
]


class PolicySignal(Part):
    """Reinforcement with TRL's GRPO on the student's own completions."""

    teacher_reward: float = Field(0.0, ge=0)
    """Weight c of the teacher-scored reward `c * clamp(delta / s, -10, 10)` added to each token's advantage, where
    delta is the teachers' mean log-probability of the sampled token minus the student's, and s the skill's running
    spread of delta. 0: verifiers only."""
    teacher_reward_form: Literal["additive", "sign_preserving"] = "additive"
    """`sign_preserving`: scale each advantage by `(1 - c) + c * clip(exp(sign(A) * delta), 0.5, 1.5)` instead, c at
    most 1, which never turns an advantage round and adds nothing where all rewards of a group agree."""


class ResponseSignal(Part):
    """Match the teachers' token distributions."""

    divergence: AnyDivergence = JSD()
    combine: AnyCombination = Mixture()
    """How several teachers become one target."""
    tokens: AnyTokenWeights | None = None
    """How much each token counts. None: all alike."""
    temperature: float | None = Field(None, gt=0)
    """Temperature of both distributions. None: the rollout's."""
    top_k: int | None = Field(None, gt=0)
    """Match the target's likeliest tokens, and all others as one outcome. None: the whole vocabulary."""


class FeatureSignal(Part):
    """Match the teachers' hidden states, attention relations, or what hidden states mean to the teachers' heads."""

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


class CacheSpec(Part):
    """Where what teachers say of gold answers is kept, so that it is computed once."""

    folder: str
    """Relative to the recipe; each teacher has a folder of its name in it."""
    top_k: int = Field(64, ge=1, le=255)
    """Tokens that a teacher names at each place; all others are one outcome. A teacher on a server has its own."""


class _Change(Part):
    at: int = Field(ge=0)
    """Optimiser steps after which it happens; 0: from the start."""


class TeacherChange(_Change):
    """A teacher gets other weights, or leaves."""

    teacher: str
    becomes: str | None
    """A name in `models`, an earlier stage, a hub id or a folder, with the same tokenizer. null: it leaves for good."""


class RewardChange(_Change):
    """A reward starts to pay for something else, to count otherwise, or to err."""

    reward: str
    """One of the recipe's rewards, as its `use` names it."""
    becomes: str | None = None
    """A shipped reward as file:function, or your own as ./file.py:function. null: it stays."""
    options: dict[str, Any] = {}
    """Keyword arguments of what it becomes."""
    weight: float | None = None
    """Its new weight. null: it stays."""
    noise: float | None = Field(None, ge=0, le=1)
    """Share of its verdicts r that are turned round, to 1 - r. null: as before."""


class SkillJoins(_Change):
    """A skill is not asked before this step, and is from then on. Prompts are drawn up to two updates ahead."""

    joins: str
    """The skill."""


class SkillLeaves(_Change):
    """A skill is no longer asked. Prompts are drawn up to two updates ahead."""

    leaves: str
    """The skill."""


class LevelShift(_Change):
    """A skill becomes easier or harder, unseen by the curriculum. Prompts are drawn up to two updates ahead."""

    skill: str
    levels: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """What takes the place of its first, second and further levels, counted from 0; the last also of all beyond."""


AnyChange = Annotated[
    Annotated[TeacherChange, Tag("TeacherChange")]
    | Annotated[RewardChange, Tag("RewardChange")]
    | Annotated[SkillJoins, Tag("SkillJoins")]
    | Annotated[SkillLeaves, Tag("SkillLeaves")]
    | Annotated[LevelShift, Tag("LevelShift")],
    Discriminator(
        told_by_key(teacher=TeacherChange, reward=RewardChange, joins=SkillJoins, leaves=SkillLeaves, skill=LevelShift),
        custom_error_type="unknown_kind",
        custom_error_message="should have one of the keys 'teacher', 'reward', 'joins', 'leaves' and 'skill'",
    ),
]


class AuditSpec(Part):
    """A reward that is trusted, however slow, checks a share of what the first of the recipe's rewards calls right.

    Where it is set, it also decides in that one's place whether a teacher is right, and whether a protected skill is
    retained.
    """

    reward: str
    """A shipped reward as file:function, or your own as ./file.py:function; it gives 1 to a right answer."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""
    share: float = Field(0.1, gt=0, le=1)
    """Of the completions that are called right."""


class Distill(_Stage):
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
    controller: AnyController = Gap()
    curriculum: CurriculumSpec = CurriculumSpec()
    rollout: Rollout = Rollout()
    retain: Retention | None = None
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

    def __call__(self, parts: Parts) -> None:
        parts.distill(self)


AnyStage = Annotated[Sft | Distill, Field(discriminator="run")]
