"""Train the model of a stage, starting from its last checkpoint, then score and store it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback

from rld.errors import NonFiniteError
from rld.evaluation.held_out import Evaluation
from rld.models.adapters import require_mergeable
from rld.pipeline.callbacks import (
    CommonRandomNumbers,
    FlopsBudget,
    FolderWatch,
    PeriodicEvaluation,
    StopOnRequest,
)
from rld.pipeline.model_card import write_model_card
from rld.pipeline.run import RunContext
from rld.pipeline.run_inputs import record_revisions
from rld.pipeline.samples import write_samples
from rld.pipeline.teacher_loading import ProbedTeacher
from rld.recipe.stages import AnyStage
from rld.reporting.progress_bar import ProgressBar
from rld.reporting.run_log import RunLog
from rld.reporting.verdict import losses_of_skills
from rld.trainer import checkpoints
from rld.trainer.finite_updates import require_finite_weights
from rld.utils import files
from rld.utils.manifest import write_manifest
from rld.utils.messages import tell
from rld.utils.run_folder import stage_record_path


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
        is_supervised: Whether the stage's loss is that of supervised fine-tuning.
        evaluation_time: Returns a context manager, such as a timer, around each scoring of the student during training.
    """

    context: RunContext
    stage: AnyStage
    trainer: Trainer
    num_parameters: int
    is_supervised: bool = False
    evaluation_time: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        context, name = self.context, self.stage.name
        if self.stage.lora is not None:
            require_mergeable(self.trained_model()[0].get_base_model())
        self.log = RunLog(context.folder, name, context.started, lambda: context.flops, self.is_supervised)

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
        if context.state.is_main_process:
            record_revisions(context.paths.inputs, context.source.parent)  # all models of the stage are loaded by now
        budget = FlopsBudget(stage.max_flops, lambda: context.flop_meter.total)
        number, count = context.stage_number(stage.name), len(context.recipe.stages)
        for callback in (
            *first,
            FolderWatch(context.paths.recipe),
            log,
            ProgressBar(stage.name, number, count, self.is_supervised),
            CommonRandomNumbers(context.seed(stage.name), context.state.process_index),
            budget,  # before the callbacks that read whether training stops
            PeriodicEvaluation(stage.evaluate_every, self._score, log),
            *last,
            StopOnRequest(context.is_stop_requested, trainer.accelerator),
        ):
            trainer.add_callback(callback)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except NonFiniteError as error:
            raise NonFiniteError(f"stage '{stage.name}', {error}") from error
        if trainer.state.global_step < stage.steps and not budget.is_used_up:
            raise Interrupted

    def _score(self) -> dict[str, float]:
        with self.evaluation_time():
            return self.context.evaluator.score(*self.trained_model())

    def finish(
        self,
        before: Evaluation,
        teachers: Sequence[ProbedTeacher] = (),
        teacher_tokens: Mapping[str, float] | None = None,
    ) -> None:
        """Score the stage's model, store it and its record atomically, and remove its checkpoints.

        Args:
            before: The student's evaluation before the stage.
            teacher_tokens: Tokens that teachers scored and that were saved. None: the stage has no teachers.
        """
        context, stage = self.context, self.stage
        model, tokenizer = self.trained_model()
        require_finite_weights(model, f"stage '{stage.name}': at its end", self.trainer.accelerator)
        if stage.lora is not None:
            model = model.merge_and_unload()
        after = context.evaluator.evaluate(model, tokenizer)
        record = self._record(before, after, teachers) | {"teacher_tokens": teacher_tokens}
        context.skip(record)
        if context.state.is_main_process:
            write_samples(
                context.paths.samples,
                stage.name,
                context.evaluator.sample_rows,
                before=before,
                after=after,
                teachers={str(probed.teacher.name): probed.evaluation for probed in teachers},
            )
            with files.replace_folder(context.paths.stage_result(stage.name)) as draft:
                model.save_pretrained(draft)
                tokenizer.save_pretrained(draft)
                files.write_json(stage_record_path(draft), record)
                write_model_card(draft, context, stage, record, self.trainer.state.global_step)
                write_manifest(draft)
            shutil.rmtree(context.paths.checkpoints(stage.name), ignore_errors=True)
        context.state.wait_for_everyone()

    def _record(self, before: Evaluation, after: Evaluation, teachers: Sequence[ProbedTeacher]) -> dict[str, Any]:
        context, meter = self.context, self.context.flop_meter
        num_rows = Counter(row["skill"] for row in context.evaluator.rows)
        scores = {
            str(t.teacher.name): {"parameters": t.num_parameters, "scores": t.evaluation.scores} for t in teachers
        }
        return {
            "name": self.stage.name,
            "kind": self.stage.kind,
            "seconds": round(time.time() - context.started - context.seconds_before, 1),
            "flops": meter.total,
            "flops_by_account": dict(meter.accounts),
            "student": {"parameters": self.num_parameters, "scores": after.scores},
            "teachers": scores,
            "before": before.scores,
            "after": after.scores,
            "below_start": losses_of_skills(before.scores, after.scores, num_rows),
            "retention": {
                skill: after.scores[skill] / score if score else None for skill, score in before.scores.items()
            },
        }
