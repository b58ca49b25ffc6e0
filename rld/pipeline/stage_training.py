"""Train the model of a stage, starting from its last checkpoint, then score and store it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from rld.errors import CheckpointError, DivergedError, NonFiniteError
from rld.evaluation.held_out import Evaluation, main_scores
from rld.models.adapters import merge_adapter, require_mergeable
from rld.pipeline.callbacks import (
    CommonRandomNumbers,
    FolderWatch,
    PageAtCheckpoints,
    PeriodicEvaluation,
    StopOnRequest,
)
from rld.pipeline.model_card import write_model_card
from rld.pipeline.predictions import write_predictions
from rld.pipeline.run import RunContext
from rld.pipeline.run_inputs import record_revisions
from rld.pipeline.stage_results import stage_record, store_result
from rld.pipeline.stopping import Stopping
from rld.pipeline.teacher_loading import ProbedTeacher, best_scores
from rld.pipeline.trackers import send_scores, tracked
from rld.recipe.stages.base import TrainingStage
from rld.reporting.progress_bar import ProgressBar
from rld.reporting.run_log import RunLog
from rld.rollout.record import RolloutTotals
from rld.trainer import checkpoints
from rld.trainer.finite_updates import require_finite_weights
from rld.trainer.sharding import is_sharded, whole_copy, whole_student
from rld.trainer.training_progress import TrainingProgress
from rld.types import Event, Row
from rld.utils.interrupts import Finishing
from rld.utils.messages import tell


class Interrupted(Exception):
    """A stage stopped early because the user asked for it, with a checkpoint written."""


@dataclass
class StageTraining:
    """The training of one stage.

    Attributes:
        context: The run.
        stage: The options of the stage.
        trainer: The trainer of the stage's model.
        num_parameters: Number of parameters of the model.
        tokens: Returns how many tokens the model has read in its updates, over all processes.
        teachers: The teachers of the stage.
        is_supervised: Whether the stage's loss is that of supervised fine-tuning.
        evaluation_time: Returns a context manager, such as a timer, around each scoring of the student during training.
    """

    context: RunContext
    stage: TrainingStage
    trainer: TrainingProgress
    num_parameters: int
    tokens: Callable[[], float]
    teachers: Sequence[ProbedTeacher] = ()
    is_supervised: bool = False
    evaluation_time: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        context, name = self.context, self.stage.name
        if self.stage.lora is not None:
            require_mergeable(self.trained_model()[0].get_base_model())
        self.log = RunLog(context.folder, name, context.started, lambda: context.flops, self.is_supervised)
        skills = [skill for skill in context.skills(self.stage) if any(row["skill"] == skill for row in self._rows)]
        self.stopping = Stopping(
            self.stage.stop,
            skills=skills,
            teachers=best_scores(self.teachers, skills),
            flops=lambda: context.flop_meter.total,
            tokens=self.tokens,
            tell=self._tell_ending,
        )

    @property
    def _rows(self) -> Sequence[Row]:
        return self.context.evaluator.rows

    def _tell_ending(self, event: Event) -> None:
        self.log.events([event])
        rule = f"its rule {event.about}: {event.measured}"
        effect = "" if event.step else "; the student has no update, because what comes before it costs as much"
        tell(f"stage '{self.stage.name}' ends after step {event.step} by {rule}{effect}")

    def trained_model(self) -> tuple[Any, PreTrainedTokenizerBase]:
        """Return the model that is trained, and its tokenizer."""
        tokenizer = self.trainer.processing_class
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return self.trainer.accelerator.unwrap_model(self.trainer.model), tokenizer

    def last_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, None if there is none; unusable checkpoints are removed."""
        context, folder = self.context, self.context.paths.checkpoints(self.stage.name)
        if not context.resume:
            return None
        messages = checkpoints.remove_unusable(folder) if context.state.is_main_process else []
        context.state.wait_for_everyone()
        checkpoint = checkpoints.latest(folder)
        if messages:
            start = "its first update" if checkpoint is None else checkpoint.name
            tell(f"{'; '.join(messages)}; stage '{self.stage.name}' goes on from {start}")
        return checkpoint

    def train(self, checkpoint: Path | None, first: Iterable[TrainerCallback] = (), last: Iterable[Any] = ()) -> None:
        """Train the stage's model, starting from `checkpoint`.

        Args:
            checkpoint: The checkpoint to resume from. None: train from the first step.
            first: Callbacks that run before all others.
            last: Callbacks that run after the student is scored, and before the one that stops on request.

        Raises:
            Interrupted: the user stopped the stage.
        """
        context, stage, trainer, log = self.context, self.stage, self.trainer, self.log
        trainer.remove_callback(PrinterCallback)
        record_revisions(context)  # all models of the stage are loaded by now
        stopping = self.stopping
        if stage.stop.budgets:
            trainer.budget_used = stopping.budget_used
        number, count = context.stage_number(stage.name), len(context.recipe.stages)
        for callback in (
            *first,
            FolderWatch(context.paths.recipe),
            log,
            ProgressBar(stage.name, number, count, self.is_supervised),
            CommonRandomNumbers(context.seed(stage.name), context.state.process_index),
            stopping,  # before the callbacks that read whether training stops
            PeriodicEvaluation(stage.evaluate_every, self._score, log, stopping),
            *last,
            StopOnRequest(context.is_stop_requested, trainer.accelerator),
            PageAtCheckpoints(context.page),
        ):
            trainer.add_callback(callback)
        try:
            folder = context.paths.tensorboard(stage.name)
            with Finishing(), tracked(trainer, folder, is_new=checkpoint is None):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except pickle.UnpicklingError as error:  # with torch's advice to load it all the same
            if checkpoint is None:
                raise
            raise CheckpointError(
                f"{checkpoint} has a file that holds more than weights and numbers, which could run code, and is "
                "refused; remove that checkpoint to go on from the one before"
            ) from error
        except NonFiniteError as error:  # of the student: a teacher's is a TeacherError
            raise DivergedError(f"stage '{stage.name}', {error}") from error
        if trainer.state.global_step < stage.steps and stopping.ending is None:
            raise Interrupted

    def _score(self) -> dict[str, float]:
        with self.evaluation_time():
            evaluator, name = self.context.evaluator, self.stage.name
            tokenizer = self.trained_model()[1]
            with whole_student(self.trainer) as model:
                predictions = evaluator.predictions(model, tokenizer, only_main=True)
                tasks = self.context.task_scores(model, tokenizer)
            if self.context.state.is_main_process:
                path = self.context.paths.predictions(name, f"step/{self.trainer.state.global_step}")
                write_predictions(path, evaluator.rows, predictions)
            scores = evaluator.main_scores(predictions) | main_scores(tasks)
            send_scores(self.trainer, scores)
            return scores

    def finish(
        self,
        before: Evaluation,
        totals: RolloutTotals | None = None,
    ) -> None:
        """Score the stage's model, store it and its record atomically, and remove its checkpoints.

        Args:
            before: The student's evaluation before the stage.
            totals: What teachers did in the stage. None: it has no teachers.
        """
        context, stage, teachers = self.context, self.stage, self.teachers
        model, tokenizer = self.trained_model()
        require_finite_weights(model, f"stage '{stage.name}': at its end", self.trainer.accelerator)
        if is_sharded(model) or self.trainer.is_deepspeed_enabled:  # which may hold it in bf16
            model = whole_copy(self.trainer)
        if stage.lora is not None:
            model = merge_adapter(model)
        try:
            after = context.evaluate(model, tokenizer)
        except NonFiniteError as error:
            raise DivergedError(f"stage '{stage.name}', after its last update: {error}") from error
        evaluator = context.evaluator
        record = stage_record(
            context, stage, self.num_parameters, evaluator, after=after, before=before, teachers=teachers
        )
        record["teacher_tokens"] = None if totals is None else totals.teacher_tokens
        record["teaching"] = {} if totals is None else totals.teaching
        record["steps"] = self.trainer.state.global_step
        record["ending"] = None if self.stopping.ending is None else self.stopping.ending._asdict()

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_model_card(folder, context, stage, record, self.trainer.state.global_step)

        evaluations = before, after
        store_result(context, stage, record, evaluator, evaluations=evaluations, save=save, teachers=teachers)
