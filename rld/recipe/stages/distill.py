"""The options of a `distill` stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from rld.controllers import AnyController
from rld.controllers.capacity import CapacityRule
from rld.controllers.gap import GapController
from rld.controllers.retention_rule import RetentionRule
from rld.recipe.controller_checks import check_controller, check_retention
from rld.recipe.demand import distill_demand
from rld.recipe.distill_cost import distill_flops, distill_flops_range
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.gold import described_gold, gold_in_use, require_possible_gold
from rld.recipe.labels import require_possible_labels
from rld.recipe.names import RecipeNames, check_member, items
from rld.recipe.own_prompts import average_bytes, own_prompt_problem
from rld.recipe.perturbations import ExperimentSpec
from rld.recipe.plugins import AuditSpec, CurriculumSpec, VerifierSpec
from rld.recipe.rollout import Rollout
from rld.recipe.signals import GoldSignal, PolicySignal, ResponseSignal, SignalSpecs, with_default_signals
from rld.recipe.sizes import Sizes, StageCost, counted, quantity
from rld.recipe.stages.base import LearningRates, Reader, TrainingStage, listed
from rld.recipe.teachers import AnyTeacher, CacheSpec, SelfTeacherSpec, ServedTeacher, TeacherSpec
from rld.utils.flops import frozen_bytes
from rld.utils.options import OptionError

_MAX_PROMPTS = 10_000_000
"""Most prompts of a stage; TRL's sampler lists the numbers of all of them."""


class Distill(TrainingStage):
    """Trains a student with rewards and several teachers at once; a controller sets the weights of the signals."""

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
    """The kind of stage."""
    teachers: dict[str, AnyTeacher] = {}
    """The teachers, by name. If empty, the stage is reinforcement learning only, and `policy` is the default signal."""
    signals: SignalSpecs = SignalSpecs(policy=PolicySignal(), response=ResponseSignal())
    gate: Literal["per_prompt", "off"] = "per_prompt"
    """The prompts on which a teacher teaches. `per_prompt`: those that it answers correctly itself, as decided by the
    audit, or by the verifier if there is no audit; with `rollout.completions: labels` those whose gold label it finds
    likeliest, and those without one where its likeliest label has not proved worse than a guess. `off`: all prompts of
    the skills for which the controller gives it a weight; for rewards that cannot decide whether an answer is
    correct."""
    distill_on: Literal["all", "failed_completions"] = "all"
    """The completions on which teachers teach. `failed_completions`: those that the verifier does not give 1 (the mask
    of Xu et al. 2025, KDRL); teachers do not score the others."""
    controller: AnyController = GapController()
    """Sets the weights of signals and teachers during training."""
    curriculum: CurriculumSpec = CurriculumSpec()
    rollout: Rollout = Rollout()
    retain: RetentionRule | None = None
    """Protection of skills against forgetting. None: no protection."""
    target: Annotated[list[str], Field(min_length=1)] | None = None
    """Skills for whose sake the stage trains, its own or others: prompts go to the skills whose gradient agrees with
    theirs on gold answers. Teachers and layers have the weight that the controller gives them on those rows. None: all
    skills count alike."""
    capacity: CapacityRule | None = None
    """What recognises a student that is too small for its teacher, and what is done then. None: nothing does."""
    audit: AuditSpec | None = None
    """A check on the verifier. None: no check."""
    cache: CacheSpec | None = None
    """A cache on disk of the teachers' log-probabilities, and of their hidden states with the feature signal. It
    requires that every completion is a gold answer. None: they are computed in each run."""
    experiment: ExperimentSpec = ExperimentSpec()
    """Deliberate changes to the stage, to study how a controller responds."""

    @model_validator(mode="before")
    @classmethod
    def _with_default_signals(cls, options: Any) -> Any:
        return with_default_signals(options) if isinstance(options, dict) else options

    @model_validator(mode="after")
    def _prompts_fit_in_memory(self) -> Distill:
        num_prompts = self.steps * self.rollout.prompts
        if num_prompts > _MAX_PROMPTS:
            message = f"times rollout.prompts it should be at most {_MAX_PROMPTS:,} prompts, not {num_prompts:,}"
            raise OptionError(message, "steps")
        return self

    @model_validator(mode="after")
    def _fixed_completions(self) -> Distill:
        is_fixed = self.rollout.gold_completions == self.rollout.completions
        if is_fixed and self.signals.policy is not None:
            message = "with gold answers alone there are no attempts to reinforce: name the signals without policy"
            raise OptionError(message, "signals", "policy")
        if self.rollout.refill and self.signals.policy is None:
            message = "it replaces prompts that teach the policy nothing, and needs signals.policy"
            raise OptionError(message, "rollout", "refill")
        if self.cache is not None and not is_fixed and not self.learns_labels:
            fix = "set rollout.gold_completions to rollout.completions"
            raise OptionError(f"a cache keeps what teachers say of gold answers: {fix}", "cache")
        return self

    @model_validator(mode="after")
    def _gold_answers_are_possible(self) -> Distill:
        require_possible_gold(self)
        return self

    @model_validator(mode="after")
    def _own_prompts_are_possible(self) -> Distill:
        if (problem := own_prompt_problem(self)) is not None:
            raise problem
        return self

    @model_validator(mode="after")
    def _capacity_can_act(self) -> Distill:
        required_signals = {"report": "", "soften": "response", "reinforce": "policy"}
        if self.capacity is None:
            return self
        if not self.teachers:
            raise OptionError("it compares a student with its teachers, and this stage has none", "capacity")
        if self.rollout.completions == self.rollout.gold_completions:
            message = "it compares how often answers are correct, and with gold answers alone none is tried"
            raise OptionError(message, "capacity")
        if self.rollout.refill:
            message = "it needs all prompts, and rollout.refill leaves those out that are always right"
            raise OptionError(message, "capacity")
        act = self.capacity.act
        if required_signals[act] and getattr(self.signals, required_signals[act]) is None:
            raise OptionError(f"{act} acts on signals.{required_signals[act]}, which is left out", "capacity", "act")
        return self

    @model_validator(mode="after")
    def _labels_can_be_learnt(self) -> Distill:
        require_possible_labels(self)
        return self

    @model_validator(mode="after")
    def _lists_suffice(self) -> Distill:
        response, temperature = self.signals.response, self.rollout.temperature
        for name, spec in self.teachers.items():
            is_served = isinstance(spec, ServedTeacher)
            if isinstance(spec, SelfTeacherSpec) or (not is_served and self.cache is None):
                continue
            place = "on a server" if is_served else "in a cache"
            if self.signals.feature is not None and is_served:
                message = "a server gives no hidden states, and this stage matches features (signals.feature)"
                raise OptionError(message, "teachers", name)
            if response is not None and response.temperature not in (None, temperature) and not self.learns_labels:
                signal_temperature = response.temperature
                mismatch = f"has the rollout's temperature {temperature:g}, not {signal_temperature:g}"
                message = f"the teacher '{name}' {place} {mismatch}"
                raise OptionError(message, "signals", "response", "temperature")
            if isinstance(spec, TeacherSpec) and spec.align is not None:
                message = "a cache holds the student's tokens, so no teacher with align is cached"
                raise OptionError(message, "teachers", name, "align")
            if isinstance(spec, ServedTeacher) and spec.is_openai and temperature != 1:
                mismatch = f"scores at temperature 1, and the rollout's is {temperature:g}"
                raise OptionError(f"an OpenAI-compatible endpoint {mismatch}", "teachers", name, "url")
        return self

    # -- the spec ----------------------------------------------------------------------------------------------------

    @property
    def loaded(self) -> dict[str, TeacherSpec]:
        """The teachers that are loaded in the training process."""
        return {name: spec for name, spec in self.teachers.items() if isinstance(spec, TeacherSpec)}

    @property
    def teacher_names(self) -> list[str]:
        return list(self.teachers)

    @property
    def learns_labels(self) -> bool:
        """Whether the completions of a prompt are its labels."""
        return self.rollout.completions == "labels"

    @property
    def has_cache(self) -> bool:
        return self.cache is not None

    @property
    def audit_in_use(self) -> VerifierSpec | None:
        return None if self.audit is None else VerifierSpec.of(self.audit)

    @property
    def learns_gold_answers(self) -> bool:
        has_named = self.has_gold_prompts and self.signals.gold != "auto" and not self.learns_teachers
        return self.rollout.gold_completions > 0 or has_named

    @property
    def learns_teachers(self) -> bool:
        """Whether prompts may have a correct answer of a teacher alone."""
        return self.gold is not None and self.gold.answers != "rows"

    @property
    def checks_gold_answers(self) -> bool:
        """Whether the gold answers of a skill are learnt only if they prove to be ones to learn from."""
        is_chosen = self.signals.gold == "auto" or (self.gold is not None and self.gold.answers == "either")
        return self.has_gold_prompts and is_chosen

    @property
    def gold(self) -> GoldSignal | None:
        """How gold answers are learnt; None: none is, but for what a teacher teaches on."""
        return gold_in_use(self)

    def has_gate(self, *, can_judge: bool) -> bool:
        """Return whether a gate decides per prompt which teachers teach.

        Args:
            can_judge: Whether the verifier can be asked about any text. An audit always can, and labels need neither.
        """
        has_judge = can_judge or self.audit is not None or self.learns_labels
        return self.gate == "per_prompt" and has_judge

    def reads_probes(self, *, can_judge: bool) -> bool:
        """Return whether only probes tell the stage how often teachers are correct, and not what the gate counts.

        Args:
            can_judge: Whether the verifier can be asked about any text.
        """
        is_gated = self.has_gate(can_judge=can_judge) and getattr(self.controller, "use_gate_counts", True)
        return (self.controller.kind == "gap" or self.capacity is not None) and not is_gated

    @property
    def has_gold_prompts(self) -> bool:
        """Whether some prompts have their gold answer alone, and others sampled completions."""
        return self.gold is not None and not self.rollout.gold_completions and not self.learns_labels

    def problem_with_documents(self, skills: Iterable[str], texts: Sequence[str]) -> OptionError | None:
        if set(self.protected(skills)) & set(texts):
            message = "answers are protected, and documents ask for none; name other skills"
            return OptionError(message, "retain", "skills")
        if not set(self.skills_in_use(skills)) & set(texts):
            return None
        if self.signals.policy is not None:
            message = "no reward tells how good a document is: name the signals without policy"
            return OptionError(message, "signals", "policy")
        if self.rollout.gold_completions != self.rollout.completions:
            fix = "set rollout.completions and rollout.gold_completions to 1"
            return OptionError(f"documents are not sampled, but learnt: {fix}", "rollout", "completions")
        if any(spec.prompt is not None for spec in self.teachers.values()):
            return OptionError("documents have no prompt that a teacher's own could replace", "teachers")
        if self.gate != "off" and self.teachers:
            fix = "set gate: off"
            return OptionError(f"documents ask for no answer by which a teacher could be judged: {fix}", "gate")
        if self.audit is not None:
            return OptionError("no reward tells how good a document is: leave it out", "audit")
        return None

    def readers(self) -> list[Reader]:
        readers = []
        for name, spec in self.teachers.items():
            if isinstance(spec, TeacherSpec):
                is_aligned = spec.align is not None
                readers.append(Reader(name, spec.model, spec.skills, spec.chat_template, is_aligned, spec.prompt))
            elif spec.prompt is not None:
                is_here = isinstance(spec, SelfTeacherSpec)
                readers.append(Reader(name, self.student, spec.skills, None, False, spec.prompt, is_here))
        return readers

    def references(self) -> list[str]:
        return [self.student, *(spec.model for spec in self.loaded.values())]

    def protected(self, skills: Iterable[str]) -> list[str]:
        """Return the skills of a recipe that are protected against forgetting."""
        stage_skills = skills if self.skills is None else self.skills
        protected = self.retain.skills if self.retain is not None else []
        return [skill for skill in skills if skill not in stage_skills] if protected is None else protected

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also its teachers, signals, controller and other parts."""
        yield from super().check(names, loc, raw)
        yield from CurriculumSpec.check(names, (*loc, "curriculum"), raw.get("curriculum"))
        for name, teacher in items(raw.get("teachers")):
            yield from check_member(AnyTeacher, names, (*loc, "teachers", name), teacher)
        yield from SignalSpecs.check(names, (*loc, "signals"), raw.get("signals"))
        yield from check_controller(names, (*loc, "controller"), raw.get("controller"))
        yield from ExperimentSpec.check(names, (*loc, "experiment"), raw.get("experiment"))
        yield from check_retention(names, (*loc, "retain"), raw.get("retain"))
        yield from AuditSpec.check(names, (*loc, "audit"), raw.get("audit"))
        yield from names.skill_list((*loc, "target"), raw.get("target"), names.skills)

    def cost(self, sizes: Sizes) -> StageCost:
        student = sizes.parameters(self.student)
        teachers = {name: sizes.parameters(spec.model) for name, spec in self.loaded.items()}
        teachers |= {name: student for name, spec in self.teachers.items() if isinstance(spec, SelfTeacherSpec)}
        counts = {name: size for name, size in teachers.items() if size is not None}
        if student is None or len(counts) < len(teachers):
            return StageCost(student, teachers, None, None)
        frozen = {spec.base: frozen_bytes(counts[name], sizes.dtype(spec)) for name, spec in self.loaded.items()}
        num_teacher_bytes = sum(frozen.values()) + average_bytes(self, frozen_bytes(student))
        demand = distill_demand(self, student, counts, sizes=sizes, teacher_bytes=num_teacher_bytes)
        num_bytes = demand.state_bytes + demand.frozen_bytes
        flops, ends = distill_flops(self, student, counts, sizes), distill_flops_range(self, student, counts, sizes)
        return StageCost(student, teachers, num_bytes, flops, demand, ends)

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        adapter = ", a LoRA adapter" if self.lora is not None else ""
        rows = [("trains", f"{self.student}, {quantity(cost.parameters)} parameters{adapter}")]
        is_judged = self.gate == "per_prompt" or self.controller.kind == "gap"
        everywhere = "where it proves better" if is_judged else "on all prompts"
        for name, teacher in self.teachers.items():
            scope = everywhere if teacher.skills is None else f"for {listed(teacher.skills)}"
            size = f", {quantity(cost.teachers[name])} parameters" if name in cost.teachers else ""
            prompt = "" if teacher.prompt is None else ", by a prompt of its own"
            rows.append(("teacher", f"{name}: {teacher.place}{size}{prompt}, {scope}"))
        signals = self.signals.describe(len(self.teachers)), described_gold(self)
        rows.append(("signals", ", ".join(filter(None, signals))))
        if self.teachers:
            by_label = "the gold label, or how often the teacher's label was right"
            by = by_label if self.learns_labels else "the teacher's own answer to it"
            gate = f"per prompt, by {by}" if self.gate == "per_prompt" else "off"
            rows.append(("gate", gate + (", on failed completions" if self.distill_on == "failed_completions" else "")))
        rows.append(("controller", f"{self.controller.kind}, every {counted(self.controller.decide_every, 'step')}"))
        rows.append(("curriculum", self.curriculum.described))
        if self.target is not None:
            rows.append(("target", f"{listed(self.target)}: prompts go where gradients agree with theirs"))
        if self.capacity is not None:
            windows = f"two windows of {self.capacity.window} ticks"
            rows.append(("capacity", f"{self.capacity.act}, where {windows} show a gap"))
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
        number = self.rollout.completions
        completions = "their labels" if number == "labels" else counted(number, "completion")
        size = f"{counted(self.steps, 'step')} of {counted(self.rollout.prompts, 'prompt')} x {completions}"
        if self.rollout.refill:
            rows.append(("refill", f"prompts of equal rewards are replaced, each {self.rollout.refill} times at most"))
        return [*rows, ("on", f"{listed(self.skills)}; {size}"), *self.stop.describe()]
