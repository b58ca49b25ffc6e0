"""The options of an `sft` stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rld.recipe.demand import sft_demand
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, keys
from rld.recipe.sizes import Sizes, StageCost, counted, quantity
from rld.recipe.stages.base import LearningRates, Reader, TrainingStage, listed
from rld.utils.flops import Account, forward_flops, training_flops
from rld.utils.options import OptionError
from rld.utils.suggestions import hint

_MAX_ROWS = 20_000
"""Maximum number of rows of a stage whose recipe does not set `num_rows`."""


class Sft(TrainingStage):
    """Supervised fine-tuning on gold answers or a teacher's answers, to train teachers or to initialise a student."""

    is_supervised: ClassVar[bool] = True
    trainer_class: ClassVar[tuple[str, str]] = ("trl.trainer.sft_config", "SFTConfig")
    learning_rates: ClassVar[LearningRates] = LearningRates(new=2e-3, adapter=1e-4, pretrained=5e-5)
    max_warmup_steps: ClassVar[int] = 20
    reserved: ClassVar[Mapping[str, str]] = {"per_device_train_batch_size": "set the stage's batch instead"}

    kind: Literal["sft"]
    """The kind of stage."""
    batch: int = Field(32, gt=0, le=1_000_000)
    """Rows per optimiser step, over all processes and accumulation steps."""
    num_rows: int | None = Field(None, gt=0, le=1_000_000)
    """Rows to train on, over all skills; repeated if the steps need more. None: as many as needed, up to 20,000."""
    shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Relative number of rows of each skill, by name. A skill that is not named has 1."""
    teacher: str | None = None
    """Train on this model's answers instead of gold answers (sequence-level distillation, Kim and Rush 2016): a name in
    `models`, an earlier stage, a hub id or a folder. It may have any tokenizer."""
    verify: bool = True
    """Train only on the teacher's correct answers, repeated where needed to keep the shares of the skills."""

    @property
    def rows_in_use(self) -> int:
        """Number of rows to train on, over all skills; the shares of the skills are rounded to whole rows."""
        return min(self.num_rows or _MAX_ROWS, self.steps * self.batch)

    @property
    def learns_gold_answers(self) -> bool:
        return self.teacher is None

    def problem_with_documents(self, skills: Iterable[str], texts: Sequence[str]) -> OptionError | None:
        if self.teacher is None or not set(self.skills_in_use(skills)) & set(texts):
            return None
        return OptionError("a document asks for no answer that a teacher could give: leave it out", "teacher")

    @property
    def teacher_names(self) -> list[str]:
        return [] if self.teacher is None else [self.teacher]

    def readers(self) -> list[Reader]:
        return [] if self.teacher is None else [Reader(self.teacher, self.teacher)]

    def references(self) -> list[str]:
        return [self.student, *([self.teacher] if self.teacher is not None else [])]

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check also its teacher and the skills in `shares`."""
        yield from super().check(names, loc, raw)
        yield from names.reference((*loc, "teacher"), raw.get("teacher"))
        for skill in keys(raw.get("shares")):
            if skill not in names.trained_skills:
                fix = " of this stage" if skill in names.skills else hint(skill, names.trained_skills)
                yield names.problem((*loc, "shares", skill), f": {skill!r} is no skill{fix}")

    def cost(self, sizes: Sizes) -> StageCost:
        student, *teachers = (sizes.parameters(model) for model in self.references())
        if student is None or None in teachers:
            return StageCost(student, {}, None, None)
        row = sizes.lengths(self.skills or sizes.skills).total
        flops: dict[Account, int] = {
            "student": self.steps * training_flops(student, self.batch * row),
            "answers": sum(forward_flops(size or 0, self.rows_in_use * row) for size in teachers),
        }
        demand = sft_demand(self, student, sizes)
        return StageCost(student, {}, demand.state_bytes, flops, demand)

    def describe(self, cost: StageCost, skills: list[str]) -> list[tuple[str, str]]:
        adapter = ", a LoRA adapter" if self.lora is not None else ""
        return [
            ("trains", f"{self.student}, {quantity(cost.parameters)} parameters{adapter}"),
            ("on", f"{listed(self.skills)}; {counted(self.steps, 'step')} of {counted(self.batch, 'row')}"),
            *self.stop.describe(),
        ]
