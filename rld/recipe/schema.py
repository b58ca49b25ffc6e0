"""The schema of a whole recipe.

Mistakes that show only in the whole recipe, such as a stage that refers to no model, are checked in `checks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PrivateAttr, field_validator, model_validator

from rld.data.row_kinds import default_rewards
from rld.data.row_kinds.labelled import label_words
from rld.errors import RldError
from rld.recipe.document import RecipeDocument, walk
from rld.recipe.evaluation import AnyEvaluator, HeldOut
from rld.recipe.models import AnyModel, CharacterTokenizer, NewModel, PrunedModel
from rld.recipe.plugins import RewardSpec, VerifierSpec
from rld.recipe.prices import Prices
from rld.recipe.prompts import Prompts
from rld.recipe.skills import AnySkill, DatasetSkill, FileSkill
from rld.recipe.stages import AnyStage
from rld.recipe.stages.base import Stage, TrainingStage
from rld.recipe.stages.distill import Distill
from rld.utils.label_words import LabelWords
from rld.utils.options import FrozenOptions, OptionError
from rld.utils.run_folder import RunFolder
from rld.utils.suggestions import hint

SHORT_STAGE = 100
"""Steps below which a stage has no time to recover from the learning rate of random weights."""

Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
"""A name that can be part of a metric's name, a folder's name and a key on the command line."""


class Recipe(FrozenOptions):
    """The definition of a run: its skills, models, rewards and stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Name of the run and of its folder."""
    seed: int = Field(0, ge=0, lt=2**31)
    models: dict[Name, AnyModel] = {}
    """Models that stages refer to by name. A string is a hub id or a folder."""
    tokenizer: CharacterTokenizer | None = None
    """The tokenizer of models with random weights. None: every model has its own tokenizer."""
    prompts: Prompts = Prompts()
    """How questions are turned into prompts; the `prompts` of a skill replaces it for that skill."""
    skills: dict[Name, AnySkill] = Field(min_length=1)
    """The skills to train on and to score, by name."""
    rewards: list[RewardSpec] = Field([RewardSpec(use="answers:exact_match")], min_length=1)
    """Rewards of the policy signal, summed with their weights. Of rows of `kind: code_task` the default one is
    code:unit_tests."""
    verifier: VerifierSpec | None = None
    """Decides during training which answers are correct: those that it gives 1. The success rates of skills, the gate,
    curricula and `distill_on` use its decisions. It is not added to the rewards. None: the first of the rewards."""
    judge: VerifierSpec | None = None
    """Decides outside of training which answers are correct: in held-out scores, probes of teachers, `verify` of `sft`
    stages and `rld evaluate`. None: the audit of the last stage that has one, else the verifier. A function that needs
    a model or is asynchronous cannot be called there: answers are then compared with the gold answers."""
    evaluation: list[AnyEvaluator] = Field([HeldOut(kind="held_out")], min_length=1)
    """What models are scored by, before and after stages and on the way: their predictions for held-out rows, and tasks
    of other evaluators."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What happens to rows of a file that cannot be read, that a model cannot read as a whole, or whose gold answer it
    cannot write. `refuse`: the run does not start. `skip`: they are left out of training and scores, unless all rows
    are such."""
    max_new_tokens: int = Field(64, gt=0, le=1_000_000)
    """Maximum number of tokens of an answer, in training and when a model is scored."""
    trainer: dict[str, Any] = {}
    """Options of TRL's configurations that all stages share. A stage's own `trainer` overrides it, key by key."""
    prices: Prices | None = None
    """What the machine, energy and APIs cost, for `rld check --card`, `rld cost`, the report and the model card; a file
    of `--prices` replaces it. No weight depends on it. None: costs are time and FLOPs."""
    stages: list[AnyStage] = Field(min_length=1)
    """Stages in the order in which they run. The model of the last stage that makes one is the result of the run."""
    _document: RecipeDocument | None = PrivateAttr(None)

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
            place = ("prompts",) if self.skills[name].prompts is None else ("skills", name, "prompts")
            if name in self.blocks and style == "chat":
                message = f"skill '{name}' has documents, which are no messages; its prompts should have style plain"
                raise OptionError(message, *place, "style")
            if style != self.prompt_style:
                message = f"prompts of skill '{name}' have style {style}, and others {self.prompt_style}"
                raise OptionError(message, *place, "style")
            for key in ("chat_template_kwargs", "strip_thinking"):
                if getattr(self.skill_prompts(name), key) not in (getattr(self.prompts, key), getattr(Prompts(), key)):
                    raise OptionError("all skills share it; set it in the recipe's prompts", *place, key)
        return self

    @model_validator(mode="after")
    def _default_rewards_are_of_the_rows(self) -> Recipe:
        if "rewards" in self.model_fields_set:
            return self
        kinds = {name: getattr(skill, "kind", None) for name, skill in self.skills.items()}
        rewards = default_rewards(kinds.values())
        if len(rewards) > 1:
            message = f"answers of the skills are checked by {' and '.join(rewards)}; name the recipe's rewards"
            other = next(name for name, kind in kinds.items() if default_rewards([kind]) != default_rewards([None]))
            raise OptionError(message, "skills", other, "kind")
        object.__setattr__(self, "rewards", [RewardSpec(use=use) for use in rewards])
        return self

    @model_validator(mode="after")
    def _scored_things_have_different_names(self) -> Recipe:
        names = list(self.skills)
        for i, options in enumerate(self.evaluation):
            for name in getattr(options, "tasks", []):
                if name in names:
                    message = f"{name!r} is the name of a skill or of another task; rename the skill"
                    raise OptionError(message, "evaluation", i, "tasks")
                names.append(name)
        return self

    @model_validator(mode="after")
    def _apis_are_teachers(self) -> Recipe:
        names = [name for stage in self.stages for name in stage.teacher_names]
        for name in self.prices.apis if self.prices is not None else ():
            if name not in names:
                raise OptionError(f"no teacher is called {name!r}{hint(name, names)}", "prices", "apis", name)
        return self

    @model_validator(mode="after")
    def _complete_trainers(self) -> Recipe:
        """Add the shared and default trainer options to each stage, so that the resolved recipe shows them."""
        stages = [
            stage.with_trainer(self.trainer, self.learns_as_new(stage)) if isinstance(stage, TrainingStage) else stage
            for stage in self.stages
        ]
        object.__setattr__(self, "stages", stages)
        return self

    @model_validator(mode="after")
    def _reference_models_are_in_files(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            if not isinstance(stage, TrainingStage) or stage.lora is not None or not stage.trainer.get("beta"):
                continue
            if isinstance(self.models.get(stage.student), NewModel):
                is_shared = stage.trainer["beta"] == self.trainer.get("beta")
                message = (
                    "it keeps the student near the weights that it begins with, and those of the new model "
                    f"'{stage.student}' are in no file; begin with a stage sft, or leave it out"
                )
                place = [] if is_shared else ["stages", i]
                raise OptionError(message, *place, "trainer", "beta")
        return self

    @model_validator(mode="after")
    def _vllm_can_load_students(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            if not isinstance(stage, Distill) or not stage.trainer.get("use_vllm"):
                continue
            if isinstance(self.models.get(stage.student), NewModel | PrunedModel):
                message = (
                    f"vLLM loads the student from its folder, and the weights of '{stage.student}' are in none; begin "
                    "with a stage sft, or leave it out"
                )
                place = [] if self.trainer.get("use_vllm") else ["stages", i]
                raise OptionError(message, *place, "trainer", "use_vllm")
        return self

    @model_validator(mode="after")
    def _labels_are_known(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            for skill in stage.skills_in_use(self.skills) if isinstance(stage, Distill) and stage.learns_labels else ():
                if skill in self.skills and skill not in self.labels:
                    fix = "give it kind: labelled, or leave it out of the stage's skills"
                    message = f"skill '{skill}' has no labels; {fix}"
                    raise OptionError(message, "stages", i, "rollout", "completions")
        return self

    @model_validator(mode="after")
    def _stages_can_learn_documents(self) -> Recipe:
        for i, stage in enumerate(self.stages):
            problem = stage.problem_with_documents(self.skills, list(self.blocks))
            if problem is not None:
                raise OptionError(str(problem), "stages", i, *problem.keys)
        return self

    @model_validator(mode="after")
    def _references_are_models(self) -> Recipe:
        scored = {stage.name: stage.origin for stage in self.stages if not stage.makes_model}
        for i, stage in enumerate(self.stages):
            for name in stage.references():
                if name in scored:
                    fix = f"name its model, {scored[name]!r}"
                    place = next(loc for loc, value in walk(stage.model_dump()) if value == name)
                    raise OptionError(f"stage {name!r} makes no model; {fix}", "stages", i, *place)
        return self

    # -- where its values stand --------------------------------------------------------------------------------------

    def read_from(self, document: RecipeDocument) -> Recipe:
        """Return this recipe, which from now on knows on which lines of a document its values stand."""
        self._document = document
        return self

    def place(self, *keys: Any) -> str:
        """Return where a value stands, as `recipe.yaml:12: stages.learn.steps`; see `RecipeDocument.place`."""
        return ".".join(map(str, keys)) if self._document is None else self._document.place(keys)

    def place_of_model(self, reference: str) -> str:
        """Return where a model is described, or named by a stage."""
        if reference in self.models:
            return self.place("models", reference)
        if any(stage.name == reference for stage in self.stages):
            return self.place("stages", reference)
        stages = [stage.model_dump() for stage in self.stages]
        locs = (loc for loc, value in walk(stages) if value == reference and loc[-1] != "name")
        return self.place("stages", *next(locs, ()))

    @contextmanager
    def mistakes_at(self, place: str) -> Iterator[None]:
        """Put a place of the recipe in front of the mistakes that are found there; see `place`."""
        try:
            yield
        except RldError as error:
            if error.is_placed:
                raise
            placed_error = type(error)(f"{place}: {error}")
            placed_error.is_placed = True
            raise placed_error from error

    # -- what it says as a whole -------------------------------------------------------------------------------------

    def learns_as_new(self, stage: TrainingStage) -> bool:
        """Return whether a stage's default learning rate is that of random weights.

        It is not in a short stage of a model that an earlier stage trained, which that rate would only make worse.
        """
        is_trained = stage.student in (other.name for other in self.stages)
        return self.is_new(stage.student) and not (is_trained and stage.steps < SHORT_STAGE)

    def is_new(self, reference: str) -> bool:
        """Return whether a reference resolves, through earlier stages, to a model with random initial weights."""
        return isinstance(self.models.get(self.origin(reference)), NewModel)

    def origin(self, reference: str) -> str:
        """Return the model that a reference leads to through earlier stages."""
        for stage in reversed(self.stages):
            reference = stage.origin if stage.name == reference else reference
        return reference

    def way_to(self, reference: str) -> list[Stage]:
        """Return the stages whose models a model is made from, in order, itself included; teachers are not among them.

        Args:
            reference: The model: a stage, or one that no stage makes.
        """
        stages, way = {stage.name: stage for stage in self.stages}, set[str]()
        pending = [reference]
        while pending:
            stage = stages.get(pending.pop())
            if stage is not None and stage.name not in way:
                way.add(stage.name)
                pending += stage.references() if stage.kind == "merge" else [stage.origin]
        return [stage for name, stage in stages.items() if name in way]

    @property
    def training_stages(self) -> list[TrainingStage]:
        """The stages that train a model."""
        return [stage for stage in self.stages if isinstance(stage, TrainingStage)]

    def stage_seed(self, name: str) -> int:
        """Return the seed of a training stage; stages that do not train change the seed of no other one."""
        return self.seed + 1000 * (1 + [stage.name for stage in self.training_stages].index(name))

    def run_folder(self, path: Path) -> RunFolder:
        """Return the paths of a run of this recipe."""
        last = [stage.name for stage in self.stages if stage.makes_model][-1:]
        without_model = {stage.name: stage.result_folder for stage in self.stages if not stage.makes_model}
        return RunFolder(path, last[0] if last else None, without_model)

    @property
    def verifier_in_use(self) -> VerifierSpec:
        """The function that decides during training which answers are correct."""
        return self.verifier or VerifierSpec.of(self.rewards[0])

    @property
    def has_own_verifier(self) -> bool:
        """Whether the verifier differs from the first of the rewards."""
        return self.verifier is not None and self.verifier != VerifierSpec.of(self.rewards[0])

    @property
    def judge_in_use(self) -> VerifierSpec:
        """The function that decides outside of training which answers are correct."""
        audits = [stage.audit_in_use for stage in self.stages if stage.audit_in_use is not None]
        return self.judge or (audits[-1] if audits else self.verifier_in_use)

    @property
    def labels(self) -> dict[str, dict[str, str]]:
        """The labels of each skill of labelled rows, with their words."""
        labels = {name: getattr(skill, "labels", {}) for name, skill in self.skills.items()}
        return {name: labels_of_skill for name, labels_of_skill in labels.items() if labels_of_skill}

    @property
    def label_words(self) -> dict[str, LabelWords]:
        """The words of the labels of each skill of labelled rows, with their synonyms."""
        skills = {name: getattr(self.skills[name], "synonyms", {}) for name in self.labels}
        return {name: label_words(self.labels[name], synonyms) for name, synonyms in skills.items()}

    @property
    def blocks(self) -> dict[str, int]:
        """The most tokens of a row of each skill of documents."""
        files = {name: skill for name, skill in self.skills.items() if isinstance(skill, (FileSkill, DatasetSkill))}
        return {name: skill.block for name, skill in files.items() if skill.predicts == "likelihood"}

    def skill_prompts(self, skill: str) -> Prompts:
        """Return the prompt options of a skill."""
        return self.skills[skill].prompts or self.prompts

    @property
    def prompt_style(self) -> Literal["plain", "chat"]:
        """The style of all prompts."""
        return self.skill_prompts(next(iter(self.skills))).style
