"""What all stages share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field

from rld.recipe import reserved_options, third_party_options
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames
from rld.recipe.option_checks import check_options
from rld.recipe.plugins import VerifierSpec
from rld.recipe.sizes import Sizes, StageCost
from rld.utils.options import FrozenOptions

_OTHER_NAMES = {"warmup_steps": "warmup_ratio", "gradient_checkpointing": "activation_checkpointing"}
"""Defaults of the trainer, and other options of transformers that decide the same."""


class LearningRates(NamedTuple):
    """The learning rates of a kind of stage, by what it trains."""

    new: float
    """A model that began with random weights in this recipe."""
    adapter: float
    """A LoRA adapter on pre-trained weights."""
    pretrained: float
    """All weights of a pre-trained model."""


class Stage(FrozenOptions):
    """One stage of a run. Its runner is the module of `pipeline` that has the name of its kind."""

    uses_rewards: ClassVar[bool] = False
    """Whether the recipe's rewards matter to it."""
    is_supervised: ClassVar[bool] = False
    """Whether its loss is that of supervised fine-tuning."""
    trainer_class: ClassVar[tuple[str, str]]
    """Module and class of TRL that hold the options of its trainer."""
    reserved: ClassVar[Mapping[str, str]] = {}
    """Options of the trainer that the stage sets itself, beside those of all stages, and what to set instead."""
    learning_rates: ClassVar[LearningRates | None] = None
    """None: TRL's default."""
    max_warmup_steps: ClassVar[int] = 0
    """Steps in which the learning rate rises at first, at most half of all steps."""

    kind: str
    """What the stage does."""
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """What later stages call this one's result; also the name of its folder."""
    student: str
    """What to train: a name in `models`, an earlier stage, a hub id or a folder."""
    skills: list[str] | None = None
    """Skills to train on. None: all."""
    steps: int = Field(gt=0)
    """Optimiser steps (updates)."""
    trainer: dict[str, Any] = {}
    """Options of TRL's configuration of the stage's trainer; they go before the recipe's `trainer`, key by key, and
    that before the stage's [optimiser defaults](#optimiser-defaults)."""
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

    # -- the spec ----------------------------------------------------------------------------------------------------

    def trainer_defaults(self, is_new: bool) -> dict[str, Any]:
        """Return the default options of the trainer.

        Args:
            is_new: Whether the student began with random weights in this recipe.
        """
        rates = self.learning_rates
        if rates is None:
            return {}
        return {
            "learning_rate": rates.new if is_new else rates.pretrained if self.lora is None else rates.adapter,
            "lr_scheduler_type": "cosine",
            "warmup_steps": min(self.max_warmup_steps, self.steps // 2),
            "gradient_checkpointing": False,
        }

    def with_trainer(self, shared: Mapping[str, Any], is_new: bool) -> Self:
        """Return the stage with all options of its trainer: its own, `shared` ones, and defaults, in this order.

        Shared options that the stage's trainer does not have are left out: they are for stages of another kind.
        """
        fields = third_party_options.trainer_fields(*self.trainer_class)
        options = {key: value for key, value in shared.items() if fields is None or key in fields} | self.trainer
        defaults = self.trainer_defaults(is_new)
        defaults = {key: value for key, value in defaults.items() if _OTHER_NAMES.get(key) not in options}
        return self.model_copy(update={"trainer": defaults | options})

    @property
    def audit_in_use(self) -> VerifierSpec | None:
        """The function that checks what the verifier calls correct; None where nothing does."""
        return None

    def models(self) -> list[str]:
        """Return the models that the stage refers to, the student first."""
        return [self.student]

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Yield what is wrong with a stage as written that only a look at the whole recipe can tell."""
        name = raw.get("name")
        if isinstance(name, str) and name in names.stage_names[: names.index]:
            yield RecipeProblem((*loc, "name"), f"an earlier stage is called {name!r} too; choose another name")
        if isinstance(name, str) and name in names.models:
            yield RecipeProblem((*loc, "name"), f"a stage and a model are both called {name!r}; choose another name")
        yield from names.reference((*loc, "student"), raw.get("student"))
        yield from names.skill_list((*loc, "skills"), raw.get("skills"), names.skills)
        yield from check_options(names, (*loc, "lora"), raw.get("lora"), third_party_options.lora_fields())
        fields = third_party_options.trainer_fields(*cls.trainer_class)
        reserved = reserved_options.TRAINER | dict(cls.reserved)
        yield from check_options(names, (*loc, "trainer"), raw.get("trainer"), fields, reserved)

    def cost(self, sizes: Sizes) -> StageCost:
        """Return what the stage will cost."""
        raise NotImplementedError

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        """Return the rows of its table in `rld check`; `skills` are the recipe's."""
        raise NotImplementedError

    # -- the runner --------------------------------------------------------------------------------------------------

    @property
    def has_cache(self) -> bool:
        """Whether `rld cache-teachers` has something to store for it."""
        return False

    def run(self, context: Any) -> None:
        """Run the stage in a `pipeline.run.RunContext`, from its last checkpoint on."""
        self._runner().run(context, self)

    def dry_run(self, context: Any) -> None:
        """Build what the options describe without loading a model, so that mistakes show before any stage trains.

        Raises:
            RldError: an option cannot be used.
        """
        self._runner().dry_run(context, self)

    def fill_cache(self, context: Any) -> dict[str, tuple[int, int]]:
        """Store what its teachers say; returns per teacher the tokens it teaches on, and those it had to read."""
        counts: dict[str, tuple[int, int]] = self._runner().fill_cache(context, self)
        return counts

    def _runner(self) -> Any:
        return importlib.import_module(f"rld.pipeline.{self.kind}")  # only now, for it imports torch


def listed(skills: list[str] | None) -> str:
    """Return the names of skills as one text."""
    return "all skills" if skills is None else ", ".join(skills)
