"""The options of a `distill` stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from rld.controllers import AnyController
from rld.controllers.gap import GapController
from rld.controllers.retention_rule import RetentionRule
from rld.recipe.controller_checks import check_controller, check_retention
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, check_member, items
from rld.recipe.perturbations import ExperimentSpec
from rld.recipe.plugins import AuditSpec, CurriculumSpec, VerifierSpec
from rld.recipe.signals import PolicySignal, ResponseSignal, SignalSpecs
from rld.recipe.sizes import Sizes, StageCost, quantity
from rld.recipe.stages.base import LearningRates, Stage, listed
from rld.recipe.teachers import AnyTeacher, CacheSpec, ServedTeacher, TeacherSpec
from rld.utils.flops import forward_flops, frozen_bytes, training_bytes, training_flops
from rld.utils.options import FrozenOptions


class Rollout(FrozenOptions):
    """What the student generates for one update."""

    prompts: int = Field(8, gt=0)
    """Prompts per update, over all processes."""
    completions: int = Field(8, ge=1)
    """Completions per prompt: the group whose rewards are compared."""
    gold_completions: int = Field(0, ge=0)
    """Of these, the gold answer itself instead of the student's own: it teaches where the student never succeeds, by
    an advantage that fades as the student does (Yan et al. 2025, LUFFY, without its reshaping). All of them: teachers
    teach on gold answers alone, nothing is generated, and `policy` must be off; one completion is enough then."""
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _groups_are_possible(self) -> Rollout:
        if self.gold_completions > self.completions:
            counts = f"gold_completions ({self.gold_completions}) should be at most completions ({self.completions})"
            raise ValueError(counts)
        if self.completions == 1 and (not self.gold_completions or self.prompts % 2):
            fix = "it takes gold_completions: 1, and even prompts"
            raise ValueError(f"one completion has no other to be compared with: {fix}")
        return self


class Distill(Stage):
    """The main job: one student, several teachers and verifiers, one loop, weights set by a controller."""

    uses_rewards: ClassVar[bool] = True
    trainer_class: ClassVar[tuple[str, str]] = ("trl.trainer.grpo_config", "GRPOConfig")
    learning_rates: ClassVar[LearningRates] = LearningRates(new=2e-3, adapter=1e-4, pretrained=5e-6)
    max_warmup_steps: ClassVar[int] = 10
    reserved: ClassVar[Mapping[str, str]] = {
        "per_device_train_batch_size": "set rollout.prompts and rollout.completions instead",
        "num_generations": "set rollout.completions instead",
        "temperature": "set rollout.temperature instead",
        "max_completion_length": "set the recipe's max_new_tokens instead",
        "reward_weights": "set the weight of each of the rewards instead",
    }

    kind: Literal["distill"]
    """What the stage does."""
    teachers: dict[str, AnyTeacher] = {}
    """By name. None: plain reinforcement."""
    signals: SignalSpecs = SignalSpecs(policy=PolicySignal(), response=ResponseSignal())
    gate: Literal["per_prompt", "off"] = "per_prompt"
    """Where a teacher may teach. `per_prompt`: on the prompts that it answers correctly itself, by the first of the
    rewards. `off`: on all prompts of the skills where the controller gives it weight, for rewards that verify
    nothing."""
    distill_on: Literal["all", "failed_completions"] = "all"
    """The completions that teachers teach on. `failed_completions`: those that the first reward does not give 1 (the
    mask of Xu et al. 2025, KDRL); the others cost no forward of a teacher."""
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
    experiment: ExperimentSpec = ExperimentSpec()
    """What is done to the stage on purpose, to see how a controller takes it."""

    @model_validator(mode="after")
    def _fixed_completions(self) -> Distill:
        is_fixed = self.rollout.gold_completions == self.rollout.completions
        if is_fixed and self.signals.policy is not None:
            raise ValueError("with gold answers alone there are no attempts to reinforce: leave signals.policy out")
        if self.cache is not None and not is_fixed:
            fix = "set rollout.gold_completions to rollout.completions"
            raise ValueError(f"cache keeps what teachers say of gold answers: {fix}")
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

    # -- the spec ----------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> dict[str, TeacherSpec]:
        """The teachers that are loaded beside the student."""
        return {name: spec for name, spec in self.teachers.items() if isinstance(spec, TeacherSpec)}

    @property
    def has_cache(self) -> bool:
        return self.cache is not None

    @property
    def audit_in_use(self) -> VerifierSpec | None:
        return None if self.audit is None else VerifierSpec(use=self.audit.use, options=self.audit.options)

    def models(self) -> list[str]:
        return [self.student, *(spec.model for spec in self.loaded.values())]

    def protected(self, skills: Iterable[str]) -> list[str]:
        """Return which of a recipe's skills the student must not forget."""
        trained = skills if self.skills is None else self.skills
        protected = self.retain.skills if self.retain is not None else []
        return [skill for skill in skills if skill not in trained] if protected is None else protected

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check its teachers, signals, controller and all else that it holds too."""
        yield from super().check(names, loc, raw)
        yield from CurriculumSpec.check(names, (*loc, "curriculum"), raw.get("curriculum"))
        for name, teacher in items(raw.get("teachers")):
            yield from check_member(AnyTeacher, names, (*loc, "teachers", name), teacher)
        yield from SignalSpecs.check(names, (*loc, "signals"), raw.get("signals"))
        yield from check_controller(names, (*loc, "controller"), raw.get("controller"))
        yield from ExperimentSpec.check(names, (*loc, "experiment"), raw.get("experiment"))
        yield from check_retention(names, (*loc, "retain"), raw.get("retain"))
        yield from AuditSpec.check(names, (*loc, "audit"), raw.get("audit"))

    def cost(self, sizes: Sizes) -> StageCost:
        student = sizes.parameters(self.student)
        teachers = {name: sizes.parameters(spec.model) for name, spec in self.loaded.items()}
        counts = {name: size for name, size in teachers.items() if size is not None}
        if student is None or len(counts) < len(teachers):
            return StageCost(student, teachers, None, None)
        frozen = {spec.base: frozen_bytes(counts[name], sizes.dtype(spec)) for name, spec in self.loaded.items()}
        num_bytes = training_bytes(student) + sum(frozen.values())
        return StageCost(student, teachers, num_bytes, self._flops(student, list(counts.values()), sizes))

    def _flops(self, student: int, teachers: list[int], sizes: Sizes) -> int:
        """Return the operations of the whole stage, from the number of parameters of each model."""
        rollout, max_new_tokens = self.rollout, sizes.max_new_tokens
        tokens = rollout.prompts * rollout.completions * max_new_tokens
        generated = rollout.prompts * (rollout.completions - rollout.gold_completions) * max_new_tokens
        # Behind the gate per prompt a teacher answers each prompt once, and scores all completions at most.
        scored = tokens + (rollout.prompts * max_new_tokens if self.gate == "per_prompt" else 0)
        flops = forward_flops(student, generated) + training_flops(student, tokens)
        flops += sum(forward_flops(teacher, scored) for teacher in teachers)
        if self.retain is not None:  # replayed at every step at most
            replayed = len(self.protected(sizes.skills)) * self.retain.batch * max_new_tokens
            flops += training_flops(student, replayed)
        return self.steps * flops

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        adapter = ", a LoRA adapter" if self.lora is not None else ""
        rows = [("trains", f"{self.student}, {quantity(cost.parameters)} parameters{adapter}")]
        for name, teacher in self.teachers.items():
            taught = "where it proves better" if teacher.skills is None else f"for {listed(teacher.skills)}"
            size = f", {quantity(cost.teachers[name])} parameters" if name in cost.teachers else ""
            rows.append(("teacher", f"{name}: {teacher.place}{size}, {taught}"))
        rows.append(("signals", self.signals.describe(len(self.teachers))))
        if self.teachers:
            gate = "per prompt, by the teacher's own answer to it" if self.gate == "per_prompt" else "off"
            rows.append(("gate", gate + (", on failed completions" if self.distill_on == "failed_completions" else "")))
        rows.append(("controller", f"{self.controller.kind}, every {self.controller.decide_every} steps"))
        rows.append(("curriculum", self.curriculum.use))
        if self.audit is not None:
            rows.append(("audit", f"{self.audit.use} checks {self.audit.share:.0%} of the successes"))
        if self.retain is not None:
            protected = listed(self.protected(skills))
            replayed = (
                f"{self.retain.probe_prompts} probe prompts each, {self.retain.batch} completions replayed a step"
            )
            rows.append(("retains", f"{protected}: {self.retain.drop:g} below the start at most; {replayed}"))
        if self.experiment.perturbations:
            rows.append(("experiment", f"{len(self.experiment.perturbations)} perturbations"))
        rollout = f"{self.rollout.prompts} prompts x {self.rollout.completions} completions"
        return [*rows, ("on", f"{listed(self.skills)}; {self.steps} steps of {rollout}")]
