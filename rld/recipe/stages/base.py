"""The base classes of the stages: what all have, and what those have that train a model."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field

from rld.recipe import reserved_options, third_party_options
from rld.recipe.cut import Cut
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.recipe.plugins import VerifierSpec
from rld.recipe.sizes import Sizes, StageCost
from rld.recipe.stopping import StoppingRules
from rld.recipe.trainer_options import check_lora, check_trainer
from rld.utils.options import FrozenOptions, OptionError

_OTHER_NAMES = {"activation_checkpointing": "gradient_checkpointing"}
"""Trainer options with a default, each mapped to another transformers option for the same setting."""


class LearningRates(NamedTuple):
    """The default learning rates of a kind of stage, by the kind of weights that it trains."""

    new: float
    """For a model whose weights were random at the start of the recipe; a short stage of a model that an earlier stage
    trained has the rate `pretrained`."""
    adapter: float
    """For a LoRA adapter on pre-trained weights."""
    pretrained: float
    """For all weights of a pre-trained model."""


class Reader(NamedTuple):
    """A model that reads a stage's rows beside the student."""

    name: str
    """Its name in the stage."""
    model: str
    """A name in `models`, an earlier stage, a hub id or a folder."""
    skills: list[str] | None = None
    """The skills whose rows it reads. None: those of the stage."""
    chat_template: str | None = None
    """Replaces its tokenizer's chat template."""
    has_own_tokenizer: bool = True
    """Whether it reads rows in its own tokens and not in the student's."""
    prompt: str | None = None
    """The template of its own prompts. None: it reads the student's."""
    has_known_context: bool = True
    """Whether the context of `model` is its own; that of a server is not known."""


class Stage(FrozenOptions):
    """A stage of a run. The module of `rld.pipeline` with the name of its `kind` runs it."""

    uses_rewards: ClassVar[bool] = False
    """Whether the stage uses the recipe's rewards."""
    makes_model: ClassVar[bool] = True
    """Whether its result is a model, to which later stages may refer."""
    result_folder: ClassVar[str] = "evaluations"
    """The folder of a run that has the results of its kind, where they are no models."""

    kind: str
    """The kind of stage."""
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name by which later stages refer to the stage's result; also the name of its folder."""

    # -- the spec ----------------------------------------------------------------------------------------------------

    @property
    def origin(self) -> str:
        """The model from which the stage's is made: a name in `models`, a stage, or a place."""
        return self.references()[0]

    def references(self) -> list[str]:
        """Return the models that the stage refers to; the first is its origin."""
        raise NotImplementedError

    @property
    def cut(self) -> Cut | None:
        """What the stage keeps of its origin's architecture; None: all."""
        return None

    def skills_in_use(self, skills: Iterable[str]) -> list[str]:
        """Return the skills of a recipe whose rows the stage's model reads."""
        return list(skills)

    def problem_with_documents(self, skills: Iterable[str], texts: Sequence[str]) -> OptionError | None:
        """Return why the stage cannot learn the documents that it has, by which option; None if it can.

        Args:
            skills: The skills of the recipe.
            texts: Those of them whose rows are documents.
        """
        return None

    @property
    def audit_in_use(self) -> VerifierSpec | None:
        """The function that audits the answers that the verifier accepts; None without an audit."""
        return None

    @property
    def learns_gold_answers(self) -> bool:
        """Whether a student is trained on gold answers."""
        return False

    @property
    def teacher_names(self) -> list[str]:
        """The names of its teachers; of a model whose answers are learnt that of the model."""
        return []

    def readers(self) -> list[Reader]:
        """Return the models on this machine that read the stage's rows beside its own."""
        return []

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Yield the mistakes in a stage's raw options that depend on the rest of the recipe."""
        name = raw.get("name")
        if isinstance(name, str) and name in names.stage_names[: names.index]:
            yield RecipeProblem((*loc, "name"), f"an earlier stage is called {name!r} too; choose another name")
        if isinstance(name, str) and name in names.models:
            yield RecipeProblem((*loc, "name"), f"a stage and a model are both called {name!r}; choose another name")

    def cost(self, sizes: Sizes) -> StageCost:
        """Return the estimated cost of the stage."""
        raise NotImplementedError

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        """Return the rows of its table in `rld check`; `skills` are those of the recipe."""
        raise NotImplementedError

    # -- the runner --------------------------------------------------------------------------------------------------

    @property
    def has_cache(self) -> bool:
        """Whether the stage has a cache for `rld cache-teachers` to fill."""
        return False

    def run(self, context: Any) -> None:
        """Run the stage in a `pipeline.run.RunContext`, starting from its last checkpoint if there is one."""
        self._runner().run(context, self)

    def dry_run(self, context: Any) -> None:
        """Create the objects that the options describe, without models, to find mistakes before any stage trains.

        Raises:
            RldError: an option cannot be used.
        """
        self._runner().dry_run(context, self)

    def fill_cache(self, context: Any) -> dict[str, tuple[int, int]]:
        """Fill the cache; return per teacher the number of tokens it teaches on, and of those it had to process."""
        counts: dict[str, tuple[int, int]] = self._runner().fill_cache(context, self)
        return counts

    def _runner(self) -> Any:
        return importlib.import_module(f"rld.pipeline.{self.kind}")  # imported late, because it imports torch


class TrainingStage(Stage):
    """A stage that trains a model with one of TRL's trainers."""

    is_supervised: ClassVar[bool] = False
    """Whether its loss is the supervised fine-tuning loss."""
    trainer_class: ClassVar[tuple[str, str]]
    """Module and class name of the TRL configuration of its trainer."""
    reserved: ClassVar[Mapping[str, str]] = {}
    """Trainer options that this kind of stage sets itself, besides those of all stages, and what to set instead."""
    learning_rates: ClassVar[LearningRates | None] = None
    """Default learning rates. None: TRL's default."""
    max_warmup_steps: ClassVar[int] = 0
    """Default number of warm-up steps of the learning rate; at most half of all steps are used."""

    student: str
    """The model to train: a name in `models`, an earlier stage, a hub id or a folder."""
    skills: list[str] | None = None
    """Skills to train on. None: all skills."""
    steps: int = Field(gt=0, le=10_000_000)
    """Optimiser steps (updates)."""
    trainer: dict[str, Any] = {}
    """Options of TRL's configuration of the stage's trainer. They override the recipe's `trainer`, key by key, which
    overrides the stage's [optimiser defaults](#optimiser-defaults)."""
    lora: dict[str, Any] | None = None
    """Options of `peft.LoraConfig`: train an adapter, which is merged into the result. None: train all weights."""
    checkpoint_every: int = Field(100, gt=0)
    """Optimiser steps between checkpoints, from which `--resume` continues."""
    evaluate_every: int | None = Field(None, gt=0)
    """Optimiser steps between scorings of the student on the held-out rows, logged as `score/<skill>`. Their FLOPs are
    not counted. None: only before and after the stage."""
    stop: StoppingRules = StoppingRules()

    def trainer_defaults(self, is_new: bool) -> dict[str, Any]:
        """Return the default options of the trainer.

        Args:
            is_new: Whether the student learns at the rate of random weights.
        """
        rates = self.learning_rates
        if rates is None:
            return {}
        return {
            "learning_rate": rates.new if is_new else rates.pretrained if self.lora is None else rates.adapter,
            "lr_scheduler_type": "cosine",
            "warmup_steps": min(self.max_warmup_steps, self.steps // 2),
            "activation_checkpointing": False,
        }

    def with_trainer(self, shared: Mapping[str, Any], is_new: bool) -> Self:
        """Return the stage with all options of its trainer: its own, else the `shared` ones, else the defaults.

        Shared options that the stage's trainer does not have are left out; they are for other kinds of stages.
        """
        fields = third_party_options.trainer_fields(*self.trainer_class) if shared else None
        options = {key: value for key, value in shared.items() if fields is None or key in fields} | self.trainer
        defaults = self.trainer_defaults(is_new)
        defaults = {key: value for key, value in defaults.items() if _OTHER_NAMES.get(key) not in options}
        return self.model_copy(update={"trainer": defaults | options})

    def references(self) -> list[str]:
        return [self.student]

    def skills_in_use(self, skills: Iterable[str]) -> list[str]:
        return list(skills) if self.skills is None else self.skills

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also its student, skills, adapter, stopping rules and trainer."""
        yield from super().check(names, loc, raw)
        yield from names.reference((*loc, "student"), raw.get("student"))
        yield from names.skill_list((*loc, "skills"), raw.get("skills"), names.skills)
        yield from check_lora(names, (*loc, "lora"), raw.get("lora"))
        yield from StoppingRules.check(names, (*loc, "stop"), raw.get("stop"))
        reserved = reserved_options.TRAINER | dict(cls.reserved)
        yield from check_trainer(names, (*loc, "trainer"), raw.get("trainer"), [cls.trainer_class], reserved)


def listed(skills: list[str] | None) -> str:
    """Return the names of skills, separated by commas."""
    return "all skills" if skills is None else ", ".join(skills)
