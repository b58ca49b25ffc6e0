"""Train a recipe, score a model, or cache teachers' log-probabilities: the functions behind the commands."""

from __future__ import annotations

import signal
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import transformers
from rich.console import Console

from rld.errors import CheckpointError, RecipeError
from rld.pipeline.recovery import elapsed_seconds, put_in_order
from rld.pipeline.reward_probe import probe_judge
from rld.pipeline.run import RunContext
from rld.pipeline.stage_training import Interrupted
from rld.pipeline.summary import SummaryWriter
from rld.recipe.schema import Recipe
from rld.reporting.report import show_report
from rld.reporting.tables import scores_table
from rld.utils import files, secrets
from rld.utils.interrupts import StopRequest, stop_on_signals
from rld.utils.messages import tell
from rld.utils.run_folder import RunFolder


def train(recipe: Recipe, source: Path, output: Path, resume: bool) -> int:
    """Run `recipe`, read from `source`, into the folder `output`.

    Returns:
        0, or 128 plus the signal's number when the user stopped the run.

    Raises:
        RldError: the recipe, a model or the run's folder cannot be used; the message says how to fix it.
    """
    _quiet()
    stop = StopRequest("stopping after this step; once more stops at once")
    elapsed = elapsed_seconds(RunFolder(output)) if resume else 0.0
    run = RunContext(recipe, source, output, resume, stop.is_made, started=time.time() - elapsed)
    resolved = secrets.masked_recipe(recipe.model_dump(mode="json"))
    probe_judge(run)
    for stage in recipe.stages:
        stage.dry_run(run)
    run.row_checks.require(run.skill_rows)
    if resume and run.state.is_main_process:
        put_in_order(run.paths, [stage.name for stage in recipe.stages])
    run.state.wait_for_everyone()
    _claim(run, resolved)
    writer = SummaryWriter(run, resolved)
    if run.state.is_main_process:
        _show_launch(run)
    writer.write("running")
    status = "failed"
    try:
        with stop_on_signals(stop):
            for stage in recipe.stages:
                record = run.paths.stage_record(stage.name)
                if record is None:
                    stage.run(run)
                else:
                    run.skip(record)
                writer.write("running")
                if stop.is_made() and stage is not recipe.stages[-1]:
                    raise Interrupted
        status = "done"
    except (Interrupted, KeyboardInterrupt):
        status = "stopped"
    finally:
        writer.write(status)
    if run.state.is_main_process:
        show_report(output)
        if status == "stopped":
            Console().print("stopped; the same command with --resume goes on from here", soft_wrap=True)
    return 0 if status == "done" else 128 + (stop.signals or [signal.SIGINT])[0]


def _show_launch(run: RunContext) -> None:
    """Print what the run trains on, and what was asked for and is not so."""
    launch = run.launch
    Console(highlight=False).print(f"{run.recipe.name}: {launch}", soft_wrap=True, markup=False)
    for remark in launch.remarks:
        tell(remark)


def _quiet() -> None:
    """Turn off the progress bars and messages of datasets and transformers; rld shows its own progress."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # about names that TRL still uses


def _claim(run: RunContext, resolved: dict[str, Any]) -> None:
    """Write the resolved recipe to the run's folder; raise if the folder was started with a different recipe."""
    path = run.paths.recipe
    if run.resume and path.is_file():
        keys = _differences(run, resolved, files.read_json(path))
        if keys:
            raise CheckpointError(
                f"{run.folder} was started with another recipe (changed: {', '.join(keys)}); "
                "resume with the same one, or choose another --output, where `models` may name what is done, such as "
                f"{run.paths.models / run.recipe.stages[0].name}"
            )
    run.state.wait_for_everyone()  # every process has checked for the file before it is written
    if run.state.is_main_process:
        run.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(path, resolved)
    run.state.wait_for_everyone()


def _differences(run: RunContext, current: dict[str, Any], previous: dict[str, Any]) -> list[str]:
    """Return the keys in which two recipes differ, except models in only one and teachers of unfinished stages."""

    def comparable(resolved: dict[str, Any]) -> dict[str, Any]:
        stages = [
            {key: value for key, value in stage.items() if key != "teachers" or run.paths.stage_record(stage["name"])}
            for stage in resolved["stages"]
        ]
        names = current["models"].keys() & previous["models"].keys()
        return {**resolved, "stages": stages, "models": {n: m for n, m in resolved["models"].items() if n in names}}

    new, old = (secrets.without_masked(comparable(resolved)) for resolved in (current, previous))
    return sorted(key for key in new.keys() | old.keys() if new.get(key) != old.get(key))


def cache_teachers(recipe: Recipe, source: Path, output: Path) -> int:
    """Store the teachers' log-probabilities for the stages of `recipe` that have a cache.

    Raises:
        RecipeError: no stage has a cache.
    """
    _quiet()
    run = RunContext(recipe, source, output, resume=True)
    stages = [stage for stage in recipe.stages if stage.has_cache]
    if not stages:
        raise RecipeError(
            f"{source}: no stage has a cache; set cache.folder, and rollout.gold_completions to rollout.completions"
        )
    run.row_checks.require(run.skill_rows)
    for stage in stages:
        for name, (size, num_read) in stage.fill_cache(run).items():
            Console().print(
                f"{stage.name}: {name} read {num_read} of {size} tokens, the others were there", soft_wrap=True
            )
    return 0


def evaluate(model: str, recipe: Recipe, source: Path) -> int:
    """Score `model` (a folder or a hub id) on the recipe's held-out rows and print the table."""
    _quiet()
    run = RunContext(recipe, source, Path(), resume=False)
    student, tokenizer = run.models.load(model)
    run.row_checks.require_readable(model, student, tokenizer, run.evaluator.rows)
    scores = run.evaluator.score(student, tokenizer)
    if run.state.is_main_process:
        Console().print(scores_table(model, scores, run.evaluator.rows))
    return 0
