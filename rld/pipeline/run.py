"""From a recipe to live objects: models, rows, trainers. Implements the `Parts` that stages ask for.

The only module that imports from everywhere; it holds no rule of its own.
"""

from __future__ import annotations

import functools
import inspect
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, set_seed
from trl import SFTConfig, SFTTrainer

from rld.data import skill_rows
from rld.data.prompt_stream import PromptStream
from rld.data.sft import sft_dataset
from rld.errors import RecipeError, RldError
from rld.evaluation import held_out
from rld.models import generation
from rld.models.logprob_source import LogprobSource
from rld.models.placement import move_unless_placed
from rld.models.prompting import PromptEncoder
from rld.pipeline import sft
from rld.pipeline.callbacks import CommonRandomNumbers, FlopsBudget, Keeper, PeriodicEvaluation
from rld.pipeline.model_loading import Loaded, ModelLoader
from rld.pipeline.perturbations import Perturbations
from rld.pipeline.teacher_loading import TeacherLoader
from rld.pipeline.trainer_arguments import distillation_arguments, lora_config, shared_arguments
from rld.recipe import registry
from rld.recipe.plugins import RewardSpec
from rld.recipe.schema import Recipe
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.sft import Sft
from rld.reporting.progress_bar import ProgressBar
from rld.reporting.run_log import RunLog
from rld.trainer import checkpoints
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.trainer.trl_patches import skip_unlabelled_positions
from rld.types import Row
from rld.utils import files, flops
from rld.utils.run_folder import RunFolder, stage_record_path

C = TypeVar("C", SFTConfig, RLDConfig)


class Interrupted(Exception):
    """A stage stopped early at the user's wish, with a checkpoint written."""


@dataclass
class RunContext:
    """One run of a recipe: where it writes, and how its stages get what they need."""

    recipe: Recipe
    source: Path
    """The recipe's file; paths in it are relative to its folder."""
    folder: Path
    resume: bool
    interrupted: Callable[[], bool] = lambda: False
    """Whether the user asked the run to stop."""
    started: float = field(default_factory=time.time)
    flops_before: float = 0.0
    """FLOPs of the stages that are done."""
    seconds_before: float = 0.0
    """Seconds that they took."""
    flops_beside: float = 0.0
    """FLOPs of the stage at work that its trainer does not count: a teacher's answers and probes."""

    def __post_init__(self) -> None:
        self.paths = RunFolder(self.folder, self.recipe.stages[-1].name)
        self.sources = skill_rows.skill_rows(self.recipe, self.source.parent)
        self.held_out = [row for source in self.sources.values() for row in source.held_out()]
        self.models = ModelLoader(self.recipe, self.source, self.paths.stage_result, self.held_out)
        # Accelerate joins CPU processes only if the first to ask says that they are on the CPU.
        self.state = PartialState(cpu=not torch.cuda.is_available())

    # -- models and scores -------------------------------------------------------------------------------------------

    def result(self, name: str) -> dict[str, Any] | None:
        """What a finished stage recorded; None while it is not finished."""
        return self.paths.stage_record(name)

    def skip(self, done: Mapping[str, Any]) -> None:
        """Count in a stage that an earlier process finished."""
        self.flops_before += done["flops"]
        self.flops_beside = 0.0
        self.seconds_before += done["seconds"]

    def score(self, model: PreTrainedModel | LogprobSource, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """Greedy accuracy on the held-out rows, per skill."""
        return {skill: accuracy for skill, (accuracy, _) in self._score(model, tokenizer, self.held_out).items()}

    def _score(self, model: Any, tokenizer: Any, rows: list[Row]) -> dict[str, tuple[float, int]]:
        return held_out.score(rows, self._generate(model, PromptEncoder(tokenizer), rows))

    def _generate(self, model: Any, encoder: PromptEncoder, rows: Sequence[Row]) -> list[str]:
        if not isinstance(model, LogprobSource):
            model = move_unless_placed(model, self.state.device)
        return generation.generate(model, encoder, rows, max_new_tokens=self.recipe.max_new_tokens)

    def _known_scores(self, reference: str) -> dict[str, float] | None:
        known = self.result(reference) if any(stage.name == reference for stage in self.recipe.stages) else None
        return known["after"] if known else None

    def check_stages(self) -> None:
        """Build what the stages' options describe, so that the last stage's mistake shows before the first one trains.

        Raises:
            RldError: the first mistake found.
        """
        self._rewards(load_models=False)
        for stage in self.recipe.stages:
            if isinstance(stage, Distill):
                self._stream(stage, self._distill_arguments(stage))
                self._trusted(stage, load_models=False)
            else:
                self._sft_arguments(stage)
            lora_config(stage.lora)

    # -- stages ------------------------------------------------------------------------------------------------------

    def fine_tune(self, stage: Sft) -> None:
        set_seed(self._seed(stage.name))
        model, tokenizer = self.models.load(stage.model)
        before = self._known_scores(stage.model) or self.score(model, tokenizer)
        skip_unlabelled_positions()
        with self._mistakes_in(stage):
            trainer = SFTTrainer(
                model,
                self._sft_arguments(stage),
                train_dataset=self._lessons(stage),
                processing_class=tokenizer,
                peft_config=lora_config(stage.lora),
            )
        size = model.num_parameters()

        def flops() -> float:
            return self.flops_before + self.flops_beside + 6.0 * size * sft.tokens_seen(trainer.state.log_history)

        self._train(trainer, stage, flops)
        self._finish(stage, trainer, size, before, {}, flops())

    def _sft_arguments(self, stage: Sft) -> SFTConfig:
        return self._configure(
            SFTConfig, stage, stage.batch, max_steps=stage.steps, max_length=None, completion_only_loss=True
        )

    def _lessons(self, stage: Sft) -> Dataset:
        chat = self.recipe.prompts.style == "chat"
        answer = None if stage.teacher is None else functools.partial(self._answers, stage.teacher)
        return sft_dataset(stage, self.sources, self._skills(stage), self._seed(stage.name), chat, answer)

    def _answers(self, reference: str, rows: Sequence[Row]) -> list[str]:
        """What a teacher answers to rows of one skill."""
        return self._counted_answers(*self.models.load(reference, dtype="auto"), rows)

    def _counted_answers(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[str]:
        """Greedy answers, whose FLOPs are the stage's."""
        encoder = PromptEncoder(tokenizer)
        texts = self._generate(model, encoder, rows)
        num_tokens = encoder.count_tokens(rows, [encoder.encode_answer(text) for text in texts])
        self.flops_beside += flops.forward_flops(model.num_parameters(), num_tokens)
        return texts

    def distill(self, stage: Distill) -> None:
        set_seed(self._seed(stage.name))
        model, tokenizer = self.models.load(stage.student)
        before = self._known_scores(stage.student) or self.score(model, tokenizer)
        skills = self._skills(stage)
        probed, dropped = self._probing()(stage, skills, (model, tokenizer))
        args, size = self._distill_arguments(stage), model.num_parameters()
        set_seed(self._seed(stage.name))  # a new adapter starts the same whatever teachers were loaded
        changes = Perturbations(
            *(stage.changes, self.recipe.rewards, self._rewards(load_models=True)),
            load=lambda reference: self.models.load(reference, dtype="auto"),
            build=lambda spec: self._reward(spec, {}),
            seed=self._seed(stage.name),
        )
        with self._mistakes_in(stage):
            trainer = RLDTrainer(
                model,
                changes.rewards,
                args,
                self._stream(stage, args),
                processing_class=tokenizer,
                peft_config=lora_config(stage.lora),
                teachers=[teacher for teacher, _ in probed],
                controller=stage.controller.seeded(self._seed(stage.name)),
                trusted=self._trusted(stage, load_models=True),
                retain_dataset=self._retained(stage),
                probe_rows=[r for s in skills for r in self.sources[s].probe(stage.controller.needs.gold)],
            )
        trainer.events += dropped

        def flops() -> float:
            return self.flops_before + self.flops_beside + trainer.flops

        self._train(trainer, stage, flops, changes)
        self._finish(stage, trainer, size, before, {str(t.name): entry for t, entry in probed}, flops())

    def _probing(self) -> TeacherLoader:
        known = self.models, self.source.parent, self.sources, self.state.device
        return TeacherLoader(*known, self.score, self._counted_answers, self._known_scores)

    def cache(self, stage: Distill) -> dict[str, tuple[int, int]]:
        """Score what a stage will train on and keep it; per teacher, the tokens of all passages and those it read."""
        student, by_name = stage.student, {other.name: other for other in self.recipe.stages}
        while student in by_name and self.result(student) is None:  # it has the tokenizer of what it is trained from
            other = by_name[student]
            student = other.student if isinstance(other, Distill) else other.model
        loaded, args = self.models.load(student), self._distill_arguments(stage)
        stream = self._stream(stage, args)
        stream.together = args.prompts_per_rollout
        return self._probing().fill(stage, list(stream.dataset), loaded, args)

    def _rewards(self, load_models: bool) -> list[Callable[..., Any]]:
        """The rewards with their options, models and all or without."""
        loaded: dict[str, Loaded] | None = {} if load_models else None
        return [self._reward(spec, loaded) for spec in self.recipe.rewards]

    def _reward(self, spec: RewardSpec, loaded: dict[str, Loaded] | None) -> Callable[..., Any]:
        """A reward with its options; one that takes a model and its tokenizer gets those that `model` names.

        `loaded` holds what was loaded already; None: load nothing.
        """
        options, name = dict(spec.options), spec.options.get("model")
        reward = registry.load("rewards", spec.use, self.source.parent)
        if loaded is not None and isinstance(name, str) and registry.takes_model(inspect.signature(reward).parameters):
            if name not in loaded:
                model, tokenizer = self.models.load(name, dtype="auto")
                loaded[name] = move_unless_placed(model, self.state.device).eval().requires_grad_(False), tokenizer
            options["model"], options["tokenizer"] = loaded[name]
        return functools.partial(reward, **options)

    def _stream(self, stage: Distill, args: RLDConfig) -> PromptStream:
        sources = {skill: self.sources[skill] for skill in self._skills(stage)}
        make = registry.load("curricula", stage.curriculum.use, self.source.parent)
        curriculum = make({skill: source.num_levels for skill, source in sources.items()}, **stage.curriculum.options)
        return PromptStream(sources, curriculum, self._seed(stage.name), args.num_prompts())

    def _distill_arguments(self, stage: Distill) -> RLDConfig:
        return self._configure(
            RLDConfig,
            stage,
            stage.rollout.prompts * stage.rollout.completions,
            max_completion_length=self.recipe.max_new_tokens,
            reward_weights=[spec.weight for spec in self.recipe.rewards],
            **distillation_arguments(stage),
        )

    def _trusted(self, stage: Distill, load_models: bool) -> Callable[..., Any] | None:
        """The reward that checks on the first one."""
        if stage.audit is None:
            return None
        spec = RewardSpec(use=stage.audit.reward, options=stage.audit.options)
        return self._reward(spec, {} if load_models else None)

    def _retained(self, stage: Distill) -> list[Row] | None:
        """Rows of the skills that a stage protects: those that are probed, and those that are replayed."""
        if stage.retain is None:
            return None
        rows = []
        for skill in stage.protected(self.sources):
            source = self.sources[skill]
            rows += source.probe(stage.retain.probes)
            rows += source.rows(stage.retain.prompts, self._seed(stage.name), gold=False)
        return rows

    # -- what all stages share ---------------------------------------------------------------------------------------

    def _skills(self, stage: Sft | Distill) -> list[str]:
        """The skills that a stage trains on."""
        return stage.skills or list(self.recipe.skills)

    def _seed(self, stage: str) -> int:
        """A seed of its own for each stage, so that a resumed run needs no other stage's random state."""
        return self.recipe.seed + 1000 * (1 + [s.name for s in self.recipe.stages].index(stage))

    def _configure(self, kind: type[C], stage: Sft | Distill, num_rows: int, **own: Any) -> C:
        """Build a trainer's arguments; the recipe's `trainer:` section goes on top of the shared ones."""
        with self._mistakes_in(stage):
            return kind(
                **shared_arguments(
                    stage,
                    num_rows,
                    self.state.num_processes,
                    self._seed(stage.name),
                    self.paths.checkpoints(stage.name),
                ),
                **own,
            )

    @contextmanager
    def _mistakes_in(self, stage: Sft | Distill) -> Iterator[None]:
        """Say in which stage TRL, PEFT or transformers refused an option."""
        try:
            yield
        except RldError:
            raise
        except (ValueError, TypeError) as error:
            raise RecipeError(f"{self.source}: stages.{stage.name}: {error}") from error

    def _train(
        self, trainer: Trainer, stage: Sft | Distill, flops: Callable[[], float], changes: Perturbations | None = None
    ) -> None:
        is_supervised = isinstance(stage, Sft)
        log = RunLog(self.folder, stage.name, self.started, flops, is_supervised)
        trainer.remove_callback(PrinterCallback)
        number = [s.name for s in self.recipe.stages].index(stage.name) + 1
        budget = FlopsBudget(stage.max_flops, lambda: flops() - self.flops_before)
        if changes is not None:
            trainer.add_callback(changes)
        trainer.add_callback(log)
        trainer.add_callback(ProgressBar(stage.name, number, len(self.recipe.stages), is_supervised))
        trainer.add_callback(CommonRandomNumbers(self._seed(stage.name), self.state.process_index))
        trainer.add_callback(budget)  # before those that ask whether the stage goes on
        trainer.add_callback(
            PeriodicEvaluation(stage.evaluate_every, lambda: self.score(*_at_work(trainer)), log, trainer)
        )
        trainer.add_callback(Keeper(self.interrupted, log, trainer))
        folder = self.paths.checkpoints(stage.name)
        last = None
        if self.resume and self.state.is_main_process:
            checkpoints.remove_incomplete(folder)
        self.state.wait_for_everyone()
        if self.resume:
            last = checkpoints.latest(folder)
        if changes is not None and isinstance(trainer, RLDTrainer):
            changes.attach(trainer, checkpoints.step(last) if last else 0)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if trainer.state.global_step < stage.steps and not budget.is_used_up:
            raise Interrupted

    def _finish(
        self,
        stage: Sft | Distill,
        trainer: Trainer,
        size: int,
        before: dict[str, float],
        teachers: Mapping[str, Any],
        flops: float,
    ) -> None:
        """Score and store the stage's model, whole or not at all, and forget its checkpoints."""
        model, tokenizer = _at_work(trainer)
        if stage.lora is not None:
            model = model.merge_and_unload()
        after = self.score(model, tokenizer)
        record = {
            "name": stage.name,
            "kind": stage.run,
            "seconds": round(time.time() - self.started - self.seconds_before, 1),
            "flops": flops - self.flops_before,
            "teacher_tokens": _teacher_tokens(trainer),
            "student": {"parameters": size, "scores": after},
            "teachers": dict(teachers),
            "before": before,
            "after": after,
            "retention": {skill: after[skill] / score if score else None for skill, score in before.items()},
        }
        self.skip(record)
        if self.state.is_main_process:
            with files.replace_folder(self.paths.stage_result(stage.name)) as draft:
                model.save_pretrained(draft)
                tokenizer.save_pretrained(draft)
                files.write_json(stage_record_path(draft), record)
            shutil.rmtree(self.paths.checkpoints(stage.name), ignore_errors=True)
        self.state.wait_for_everyone()


def _at_work(trainer: Trainer) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model that a trainer trains, and its tokenizer."""
    tokenizer = trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return trainer.accelerator.unwrap_model(trainer.model), tokenizer


def _teacher_tokens(trainer: Trainer) -> dict[str, float] | None:
    """Tokens that teachers scored, and those that full scoring would have cost on top; None without teachers."""
    if not isinstance(trainer, RLDTrainer) or not trainer.teachers:
        return None
    return {"scored": trainer.num_scored, "saved": trainer.num_saved}
