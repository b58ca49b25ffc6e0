"""The state that the stages of one run share: recipe, folder, seeds, rows, models, elapsed time and FLOPs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from rld.data.recipe_rows import skill_rows
from rld.errors import RecipeError, RldError
from rld.evaluation.evaluators import build_evaluator
from rld.evaluation.held_out import Evaluation, HeldOutEvaluator
from rld.evaluation.measured import MeasuredScore
from rld.evaluation.predictions import Prediction
from rld.evaluation.predictors.base import PredictionSettings
from rld.evaluation.predictors.text import TextPredictor
from rld.models.logprob_source import LogprobSource
from rld.models.placement import move_unless_placed
from rld.models.prompting import PromptEncoder
from rld.models.text_pieces import cut_text
from rld.pipeline.judge import load_judge
from rld.pipeline.launch import process_timeout, read_launch
from rld.pipeline.model_loading import ModelLoader
from rld.pipeline.predictions import read_predictions
from rld.pipeline.row_checks import RowChecks
from rld.pipeline.trainer_arguments import shared_arguments
from rld.recipe.inputs import Inputs, InputsFile
from rld.recipe.schema import Recipe
from rld.recipe.stages.base import Stage, TrainingStage
from rld.reporting.live_page import LivePage
from rld.reporting.summary_records import LaunchRecord
from rld.trainer import launch
from rld.types import Answer, Row
from rld.utils.energy import PowerMeter
from rld.utils.files import Record
from rld.utils.flops import FlopMeter, forward_flops
from rld.utils.messages import one_line
from rld.utils.os_errors import is_lost_process

C = TypeVar("C", bound=TrainingArguments)

MISTAKES = (ValueError, TypeError, ImportError, RuntimeError, OSError)
"""Exceptions by which a library refuses what it is given."""

SETUP = (Exception,)
"""Exceptions of a library's set-up, all of which mean that it refuses an option."""


@dataclass
class RunContext:
    """One run of a recipe.

    Attributes:
        recipe: The recipe to run.
        source: The recipe's file; paths in it are relative to its folder.
        folder: The folder that the run writes to.
        resume: Whether the run continues from the files in the folder.
        is_stop_requested: Returns whether the user asked the run to stop.
        started: Start of the run by `time.monotonic`, minus the seconds that it ran before it was resumed.
    """

    recipe: Recipe
    source: Path
    folder: Path
    resume: bool
    is_stop_requested: Callable[[], bool] = lambda: False
    started: float = field(default_factory=time.monotonic)
    flops_before: float = field(default=0.0, init=False)
    """FLOPs of the finished stages."""
    flop_meter: FlopMeter = field(default_factory=FlopMeter, init=False)
    """FLOPs of the current stage."""
    power_meter: PowerMeter = field(default_factory=PowerMeter, init=False)
    """The power in the current stage, since this process has begun with it."""

    def __post_init__(self) -> None:
        self.paths = self.recipe.run_folder(self.folder)
        self.page = LivePage(self.folder)
        self.models = ModelLoader(
            self.recipe,
            self.source,
            self.paths.stage_result,
            self._training_rows,
            lambda flops: self.flop_meter.add_student("cut", flops),
        )
        judge = load_judge(self.recipe, self.source.parent)
        self.row_checks = RowChecks(self.recipe, self.models, judge)
        accepts = {"accepts": self.row_checks.accepts} if self.recipe.bad_rows == "skip" else {}
        self.skill_rows = skill_rows(self.recipe, self.source.parent, **accepts, cut=self._cut)
        is_held_out = any(options.kind == "held_out" for options in self.recipe.evaluation)
        held_out = [row for rows in self.skill_rows.values() for row in rows.held_out() if is_held_out]
        request = launch.read_request()
        launch.require_possible(request)
        # Accelerate connects CPU processes only if the first PartialState is created with cpu=True. Only the first one
        # sets how long processes wait for one another: those of the trainers' arguments find them connected.
        self.state = PartialState(cpu=not torch.cuda.is_available(), timeout=process_timeout(self.recipe))
        launch.require_strategy(request.strategies, self.state)
        self._request, self._precisions = request, dict[str, str]()
        settings = PredictionSettings(
            judge,
            self.recipe.max_new_tokens,
            self.state.device,
            self.recipe.prompts.chat_template_kwargs,
            self.recipe.prompts.strip_thinking,
        )
        self.texts = TextPredictor(settings, self.recipe.skills)
        self.evaluator = HeldOutEvaluator(held_out, self.recipe.skills, settings)
        self.evaluators = {
            self.recipe.place("evaluation", i): build_evaluator(
                options, self.source, is_chat=self.recipe.prompt_style == "chat"
            )
            for i, options in enumerate(self.recipe.evaluation)
            if options.kind != "held_out"
        }

    @property
    def flops(self) -> float:
        """FLOPs of the run so far."""
        return self.flops_before + self.flop_meter.total

    @property
    def launch(self) -> LaunchRecord:
        """What the run trains on, once each stage's arguments were built."""
        return read_launch(self.state, self._request, self._precisions.values())

    # -- stages ------------------------------------------------------------------------------------------------------

    def stage_number(self, name: str) -> int:
        """Return the position of the stage `name` in the recipe, counted from 1."""
        return 1 + [stage.name for stage in self.recipe.stages].index(name)

    def seed(self, name: str) -> int:
        """Return a training stage's seed; with one per stage, a resumed run needs no random state of other stages."""
        return self.recipe.stage_seed(name)

    def skills(self, stage: Stage) -> list[str]:
        """Return the skills that a stage trains on."""
        return stage.skills_in_use(self.recipe.skills)

    def skip(self, record: Mapping[str, Any]) -> None:
        """Add the FLOPs in a finished stage's record to those of the run, and begin to measure those of the next."""
        self.flops_before += record["flops"]
        self.flop_meter, self.power_meter = FlopMeter(), PowerMeter()

    @property
    def inputs(self) -> Inputs:
        """What the run's numbers depend on, as `run_inputs` recorded it."""
        return InputsFile.read(self.paths.inputs).inputs

    def finished(self, stage: str) -> Record | None:
        """Return the record of a stage that is finished with the inputs that the run has now, else None."""
        record = self.paths.stage_record(stage)
        return record if record is not None and record.get("fingerprint") == self.inputs.fingerprint(stage) else None

    @property
    def seconds_before(self) -> float:
        """Seconds that the finished stages took."""
        records = [self.finished(stage.name) for stage in self.recipe.stages]
        return sum(float(record["seconds"]) for record in records if record is not None)

    def earlier_evaluation(self, reference: str) -> Evaluation | None:
        """Return the evaluation of the finished stage that `reference` names; None where its model is to be scored.

        That is where it names no stage, or the predictions of the stage are missing or damaged.
        """
        if all(stage.name != reference for stage in self.recipe.stages):
            return None
        record = self.paths.stage_record(reference)
        path = self.paths.predictions(reference, "after")
        predictions = None if record is None else read_predictions(path, self.evaluator.rows)
        if record is None or predictions is None:
            return None
        tasks = {
            name: {score: MeasuredScore(**ends) for score, ends in scores.items()}
            for name, scores in record["scorings"].get("after", {}).items()
            if name not in self.recipe.skills
        }
        evaluation = self.evaluator.evaluation(predictions).with_tasks(tasks)
        return evaluation if evaluation.scores == record["after"] else None

    def evaluate(self, model: Any, tokenizer: Any, rows: Sequence[Row] | None = None) -> Evaluation:
        """Return a model's scores on the held-out rows and on the tasks of other evaluators, and its predictions.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            rows: The held-out rows as the model reads them. None: as the student reads them.
        """
        evaluator = self.evaluator if rows is None else replace(self.evaluator, rows=rows)
        return evaluator.evaluate(model, tokenizer).with_tasks(self.task_scores(model, tokenizer))

    def task_scores(self, model: Any, tokenizer: Any) -> dict[str, Mapping[str, MeasuredScore]]:
        """Return a model's scores on the tasks of other evaluators; none for a model that is elsewhere."""
        if isinstance(model, LogprobSource):
            return {}
        scores: dict[str, Mapping[str, MeasuredScore]] = {}
        for place, evaluator in self.evaluators.items():
            with self.recipe.mistakes_at(place):
                scores |= evaluator.evaluate(move_unless_placed(model, self.state.device), tokenizer)
        return scores

    def encoder(self, model: Any, tokenizer: Any) -> PromptEncoder:
        """Return the encoder of prompts and answers for a model, with the recipe's options of the chat template."""
        return self.evaluator.settings.encoder(model, tokenizer)

    def answer(self, teacher: str, model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[Answer]:
        """Return a teacher's greedy answers to rows, and add their FLOPs to those of the current stage."""
        encoder = self.encoder(model, tokenizer)
        answers = self.texts.answer(model, tokenizer, rows)
        num_tokens = encoder.count_tokens(rows, encoder.encode_answers([answer.text for answer in answers]))
        self.flop_meter.add("answers", forward_flops(model.num_parameters(), num_tokens), teacher)
        return answers

    def predict(self, teacher: str, model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[Prediction]:
        """Return a teacher's predictions for rows, and add their FLOPs to those of the current stage."""
        predictions = self.evaluator.predict(model, tokenizer, rows)
        num_tokens = sum(prediction.num_tokens for prediction in predictions)
        self.flop_meter.add("answers", forward_flops(model.num_parameters(), num_tokens), teacher)
        return predictions

    def _cut(self, skill: str, text: str) -> list[str]:
        """Return the pieces of a document of a skill, by the tokenizer of the last model that is trained on it."""
        reader = [stage for stage in self.recipe.training_stages if skill in self.skills(stage)][-1:]
        origin = (reader or self.recipe.stages)[0].origin
        return cut_text(self.models.encoder(origin)[0], text, self.recipe.blocks[skill])

    def _training_rows(self, count: int) -> list[Row]:
        """Return so many training rows, over all skills."""
        sources = list(self.skill_rows.values())
        return [row for source in sources for row in source.probe(-(-count // len(sources)))]

    # -- trainers ----------------------------------------------------------------------------------------------------

    def arguments(self, kind: type[C], stage: TrainingStage, num_rows: int, **options: Any) -> C:
        """Return the arguments of a stage's trainer: those that all stages share, those of the stage, and `options`.

        Args:
            kind: The class of arguments.
            num_rows: Rows of an update, over all processes and accumulation steps.

        Raises:
            RecipeError: an option cannot be used.
        """
        seed, folder = self.seed(stage.name), self.paths.checkpoints(stage.name)
        launch.require_installed(stage.trainer)
        with self.mistakes_in(stage, "trainer", SETUP):
            shared = shared_arguments(stage, num_rows, self.state.num_processes, seed, folder)
            names = {"run_name": f"{self.recipe.name}-{stage.name}"}  # in the logs of trackio and W&B
            arguments = kind(**names | shared, **options)
        launch.require_precision(arguments.mixed_precision, self.state.device)
        strategies = launch.requested_by(arguments)
        launch.require_strategy(strategies, self.state)
        launch.require_supported(arguments)
        self._request = replace(self._request, strategies={**self._request.strategies, **strategies})
        self._precisions[stage.name] = arguments.mixed_precision
        return arguments

    @contextmanager
    def mistakes_in(self, stage: Stage, key: str = "", kinds: tuple[type[Exception], ...] = MISTAKES) -> Iterator[None]:
        """Name the recipe's line and key in the error when TRL, PEFT, transformers or rld refuses an option of a stage.

        Args:
            stage: The stage.
            key: The key of the stage that has the options, or the keys that lead to it, joined by dots.
            kinds: Exceptions that mean a mistake in the recipe; `SETUP` where nothing but a library's set-up runs.
        """
        try:
            yield
        except Exception as error:
            if not isinstance(error, (RldError, *kinds)) or is_lost_process(error):
                raise
            message = one_line(error) or type(error).__name__
            options = [option for option in getattr(stage, "trainer", {}) if re.search(rf"\b{option}\b", message)]
            keys = key.split(".") if key else []
            keys = ["trainer", *options] if key in ("", "trainer") and len(options) == 1 else keys
            with self.recipe.mistakes_at(self.recipe.place("stages", stage.name, *keys)):
                if isinstance(error, RldError):
                    raise
                raise RecipeError(message) from error
