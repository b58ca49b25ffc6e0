"""Train a recipe, score or export a model, or cache teachers' log-probabilities: the functions behind the commands."""

from __future__ import annotations

import errno
import gc
import signal
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import transformers
from safetensors import SafetensorError

from rld.errors import RecipeError, SystemFailure
from rld.evaluation.held_out import Evaluation
from rld.models.generation import encoder_of
from rld.pipeline.exporting import ExportPlan, first_rows, new_folder
from rld.pipeline.model_sources import StoredModel
from rld.pipeline.recovery import elapsed_seconds, put_in_order, repeated_seconds
from rld.pipeline.run import RunContext
from rld.pipeline.run_checks import require_installed, require_runnable
from rld.pipeline.run_inputs import record_inputs
from rld.pipeline.stage_results import plain_scores
from rld.pipeline.stage_training import Interrupted
from rld.pipeline.summary import SummaryWriter
from rld.recipe.schema import Recipe
from rld.recipe.stages.export import Export
from rld.reporting.exports import export_table
from rld.reporting.report import show_report
from rld.reporting.score_records import ScoreRecord
from rld.reporting.tables import scores_table
from rld.trainer import checkpoints
from rld.types import Row
from rld.utils.console import SafeConsole
from rld.utils.energy import lacks_counters
from rld.utils.files import write_json
from rld.utils.interrupts import StopRequest, Waiting, stop_on_signals
from rld.utils.messages import tell
from rld.utils.os_errors import as_os_error, describe_os_error, fullest_disk, is_lost_process
from rld.utils.run_folder import RunFolder

_EXPORT_RECORD = "rld_export.json"
"""What `rld export` writes beside the exported files: how they compare with the model, and what they take."""


def train(recipe: Recipe, source: Path, output: Path, resume: bool, accepts_changes: bool = False) -> int:
    """Run `recipe`, read from `source`, into the folder `output`.

    Args:
        resume: Whether to go on with the run in that folder.
        accepts_changes: Whether to go on although recipe, code, data, models or packages have changed.

    Returns:
        0, or 128 plus the signal's number when the user stopped the run.

    Raises:
        RldError: the recipe, a model or the run's folder cannot be used; the message says how to fix it.
    """
    _quiet()
    stop = StopRequest("stopping after this step; once more stops at once")
    elapsed = elapsed_seconds(RunFolder(output)) if resume else 0.0
    run = RunContext(recipe, source, output, resume, stop.is_made, started=time.monotonic() - elapsed)
    require_runnable(run)
    require_installed(run)
    if resume and run.state.is_main_process:
        put_in_order(run.paths, [stage.name for stage in recipe.stages])
    run.state.wait_for_everyone()
    record_inputs(run, accepts_changes)
    if resume:
        run.started += repeated_seconds(run.paths, [stage.name for stage in recipe.stages if run.finished(stage.name)])
        run.started = min(run.started, time.monotonic() - run.seconds_before)
    writer = SummaryWriter(run)
    try:
        if run.state.is_main_process:
            _show_launch(run)
        status = _run_stages(run, writer, stop)
        if run.state.is_main_process:
            show_report(output)
            if status == "stopped":
                SafeConsole().print(f"stopped; {_same_command(run)} goes on from here", soft_wrap=True)
    except Exception as error:
        is_failure = isinstance(error, OSError | RuntimeError | MemoryError | ImportError | SafetensorError)
        failure = as_os_error(error) if is_failure else None
        if failure is None:
            raise
        place = "" if failure.filename or failure.errno == errno.ENOMEM else f" ({output})"
        disk = fullest_disk(failure, output, Path(tempfile.gettempdir()))
        parts = [f"{describe_os_error(failure)}{place}", disk, _what_remains(run)]
        raise SystemFailure("; ".join(filter(None, parts))) from error
    return 0 if status == "done" else 128 + (stop.signals or [signal.SIGINT])[0]


def _run_stages(run: RunContext, writer: SummaryWriter, stop: StopRequest) -> str:
    """Run the stages that are not finished, and return the run's status: `done` or `stopped`."""
    writer.write("running")
    try:
        with stop_on_signals(stop), Waiting():  # what is not an update is done again, and costs nothing
            for stage in run.recipe.stages:
                record = run.finished(stage.name)
                if record is None:
                    if run.state.is_main_process:
                        run.page.draw()
                    stage.run(run)
                    gc.collect()  # a trainer and its callbacks refer to each other, which alone keeps their models
                else:
                    run.skip(record)
                writer.write("running")
                if stop.is_made() and stage is not run.recipe.stages[-1]:
                    raise Interrupted
    except (Interrupted, KeyboardInterrupt):
        writer.write("stopped")
        return "stopped"
    except BaseException as failure:
        if stop.is_made() and is_lost_process(failure):  # another process has stopped before this one
            writer.write("stopped")
            return "stopped"
        try:
            writer.write("failed")
        except OSError as error:  # often for the reason for which the stage failed, which is the one to tell
            tell(f"summary.json could not be updated: {describe_os_error(error)}")
        else:
            if run.state.is_main_process:
                run.page.draw_last()  # else it would say for ever that the run is running
        raise
    writer.write("done")
    return "done"


def _what_remains(run: RunContext) -> str:
    """Return what is left of a run that the machine ended, and how to go on."""
    if not run.paths.recipe.is_file():
        return f"{run.folder} is gone or cannot be read, so nothing of the run remains"
    finished, parts = [], []
    for stage in run.recipe.stages:
        if run.finished(stage.name) is not None:
            finished.append(stage.name)
        elif (checkpoint := checkpoints.latest(run.paths.checkpoints(stage.name))) is not None:
            parts.append(f"stage {stage.name} has a checkpoint at step {checkpoints.step(checkpoint)}")
    parts.insert(0, f"finished stages: {', '.join(finished) or 'none'}")
    return f"{', '.join(parts)}; once that is mended, {_same_command(run)} goes on from there"


def _same_command(run: RunContext) -> str:
    """Return the command that goes on with a run; one that resumes, as each of `rld ablate` does, needs no option."""
    return "the same command" if run.resume else "the same command with --resume"


def _show_launch(run: RunContext) -> None:
    """Print what the run trains on, and what was asked for and is not so."""
    launch = run.launch
    SafeConsole(highlight=False).print(f"{run.recipe.name}: {launch}", soft_wrap=True, markup=False)
    for remark in launch.remarks:
        tell(remark)
    if run.recipe.prices is not None and lacks_counters():
        tell("energy is not measured, but stated; to read the GPUs' counters: pip install -e '.[energy]'")


def _quiet() -> None:
    """Turn off the progress bars and messages of datasets and transformers; rld shows its own progress."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about names that TRL still uses


def cache_teachers(recipe: Recipe, source: Path, output: Path) -> int:
    """Store the teachers' log-probabilities for the stages of `recipe` that have a cache.

    Raises:
        RecipeError: no stage has a cache.
    """
    _quiet()
    run = RunContext(recipe, source, output, resume=True)
    stages = [stage for stage in recipe.stages if stage.has_cache]
    if not stages:
        with recipe.mistakes_at(recipe.place("stages")):
            raise RecipeError("none has a cache; set cache.folder, and rollout.gold_completions to rollout.completions")
    run.row_checks.require(run.skill_rows)
    for stage in stages:
        for name, (size, num_read) in stage.fill_cache(run).items():
            SafeConsole().print(
                f"{stage.name}: {name} read {num_read} of {size} tokens, the others were there", soft_wrap=True
            )
    return 0


def evaluate(model: str, recipe: Recipe, source: Path) -> int:
    """Score `model` (a folder or a hub id) on the recipe's held-out rows and print the table."""
    _quiet()
    run = RunContext(recipe, source, Path(), resume=False)
    student, tokenizer = run.models.load(model)
    run.row_checks.require_readable(model, student, tokenizer, run.evaluator.rows)
    evaluation = run.evaluate(student, tokenizer)
    if run.state.is_main_process:
        _show_scores(model, evaluation, run.evaluator.rows)
    return 0


def _show_scores(title: str, evaluation: Evaluation, rows: Sequence[Row]) -> None:
    scoring = {
        skill: {name: ScoreRecord(**score._asdict()) for name, score in scores.items()}
        for skill, scores in evaluation.measured.items()
    }
    SafeConsole().print(scores_table(title, scoring, rows))


def export(options: Export, output: Path, recipe: Recipe | None, source: Path) -> int:
    """Export a model that is no part of a run, and print how it compares and what it takes.

    Args:
        options: Model, format, precision and number of rows.
        output: The folder to fill, which does not exist.
        recipe: Its held-out rows verify and score the exported model. None: it is verified on a page of text.
        source: The recipe's file.

    Raises:
        ModelError: the model cannot be exported, or what was exported is not the model.
    """
    _quiet()
    run = None if recipe is None else RunContext(recipe, source, Path(), resume=False)
    if run is None:
        model, tokenizer = StoredModel(options.model, {}, is_here=True).load({}, "float32")
        encoder, rows = encoder_of(model, tokenizer, {}), list[Row]()
    else:
        model, tokenizer = run.models.load(options.model)
        encoder, rows = run.encoder(model, tokenizer), first_rows(run.evaluator.rows, options.max_rows)
    plan = ExportPlan(model, encoder, options.format, options.precision_in_use, rows)
    with new_folder(output) as draft:
        record = plan.export(draft)
        content: dict[str, Any] = {"export": record.model_dump()}
        if run is not None and rows:
            evaluator = replace(run.evaluator, rows=rows)
            evaluations = {
                "the model": evaluator.evaluate(model, tokenizer),
                "its export": plan.score(draft, evaluator),
            }
            content["scorings"] = {name: plain_scores(evaluation) for name, evaluation in evaluations.items()}
            for name, evaluation in evaluations.items():
                _show_scores(name, evaluation, rows)
        write_json(draft / _EXPORT_RECORD, content)
    SafeConsole(highlight=False).print(export_table(record, f"{options.model} in {output}"))
    return 0
