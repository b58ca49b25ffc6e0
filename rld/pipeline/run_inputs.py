"""Record in a run's folder what the run depends on, and refuse or tell what of it has changed since its start."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rld.errors import CheckpointError
from rld.pipeline.run import RunContext
from rld.recipe.input_changes import Effect, InputChange, input_changes
from rld.recipe.inputs import AcceptedChanges, Inputs, InputsFile, model_fingerprint
from rld.recipe.progress import StageProgress, StageState, run_progress
from rld.utils import files
from rld.utils.manifest import write_manifest
from rld.utils.messages import tell
from rld.utils.run_folder import stage_record_path

_ACCEPT = "--accept-changes"


def record_inputs(run: RunContext, accepts_changes: bool) -> None:
    """Write a run's inputs and its resolved recipe to its folder; of a run that is resumed compare the inputs first.

    Args:
        accepts_changes: Whether the run may go on with inputs that change its numbers.

    Raises:
        CheckpointError: on every process, the run cannot go on, or the changes are not accepted; names each.
    """
    on_main_process(run.state, lambda: _record(run, accepts_changes))


def on_main_process(state: PartialState, function: Callable[[], None]) -> None:
    """Call a function on the main process; where it fails, end the others too, which would wait for it.

    Raises:
        Exception: on the main process, what the function raised.
        CheckpointError: on the others, if it raised; without a text, for the main process has one.
    """
    error: Exception | None = None
    if state.is_main_process:
        try:
            function()
        except Exception as caught:
            error = caught
    has_failed = [error is not None]
    broadcast_object_list(has_failed)
    if has_failed[0]:
        raise error or CheckpointError("")


def _record(run: RunContext, accepts_changes: bool) -> None:
    current = Inputs.of(run.recipe, run.source.parent, run.launch.model_dump(mode="json", exclude={"remarks"}))
    history: list[AcceptedChanges] = []
    if run.resume and (run.paths.inputs.is_file() or run.paths.recipe.is_file()):
        previous, history = _previous(run, accepts_changes)
        current = current if previous is None else current.with_known_models(previous)
        progress = run_progress(current, run.paths)
        texts = [f"{run.paths.inputs.name} was lost or damaged"]
        if previous is not None:
            changes = input_changes(previous, current, [stage.stage for stage in progress if stage.is_started])
            _require_accepted(run, changes, accepts_changes)
            texts = [change.text for change in changes]
        if texts:
            history = [*history, _from_here(progress, texts, accepts_changes)]
            tell(f"{run.folder}: {history[-1]}")
        _settle(run, current, progress, accepts_changes)
    run.folder.mkdir(parents=True, exist_ok=True)
    InputsFile(inputs=current, changes=history).write(run.paths.inputs)
    files.write_json(run.paths.recipe, current.recipe)


def _settle(run: RunContext, inputs: Inputs, progress: list[StageProgress], accepts_changes: bool) -> None:
    """Say which stages run again, or that they keep their results, and remove what finished stages left behind."""
    for stage in progress:
        result = run.paths.stage_result(stage.stage)
        if stage.state is StageState.STALE and accepts_changes:
            record = files.read_json(stage_record_path(result)) | {"fingerprint": inputs.fingerprint(stage.stage)}
            files.write_json(stage_record_path(result), record)
            write_manifest(result)
            tell(f"stage '{stage.stage}' is finished and keeps its result")
        elif stage.state is StageState.STALE:
            tell(f"stage '{stage.stage}' runs again: {stage.reason}; it keeps its result until it has another one")
        elif stage.state is StageState.DONE:
            shutil.rmtree(run.paths.checkpoints(stage.stage), ignore_errors=True)


def _previous(run: RunContext, accepts_changes: bool) -> tuple[Inputs | None, list[AcceptedChanges]]:
    """Return the inputs that the run had, None where its file is lost and the user accepts that, and their changes."""
    try:
        previous = InputsFile.read(run.paths.inputs)
    except CheckpointError as error:
        if accepts_changes:
            return None, []
        raise CheckpointError(
            f"{error}; so it cannot be told whether recipe, code, data and models are those that the run was started "
            f"with; if they are, add {_ACCEPT}"
        ) from error
    return previous.inputs, previous.changes


def _require_accepted(run: RunContext, changes: list[InputChange], accepts_changes: bool) -> None:
    serious = [change for change in changes if change.effect is Effect.NEEDS_CONSENT]
    if serious and not accepts_changes:
        lines = [f"{run.folder} was started with other inputs:", *(f"  {change.text}" for change in serious)]
        stages = sorted({stage for change in serious for stage in change.stages})
        started = [str(run.paths.checkpoints(stage)) for stage in stages if run.paths.checkpoints(stage).is_dir()]
        anew = f"; or remove {', '.join(started)} to train what depends on them anew" if started else ""
        lines.append(
            f"resume with the same inputs; or add {_ACCEPT} to keep what is finished and go on with these, which the "
            f"run then records{anew}; or choose another --output"
        )
        raise CheckpointError("\n".join(lines))


def _from_here(progress: list[StageProgress], texts: list[str], keeps_results: bool) -> AcceptedChanges:
    """Return changes with the stage and the update from which the run goes on."""
    complete_states = [StageState.DONE, StageState.STALE] if keeps_results else [StageState.DONE]
    stage = next((stage for stage in progress if stage.state not in complete_states), progress[-1])
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return AcceptedChanges(stage=stage.stage, step=(stage.checkpoint or 0) + 1, time=now, changes=texts)


def record_revisions(run: RunContext) -> None:
    """Add the revisions of hub ids that were not on this machine when the run was started, and are now."""
    if not run.state.is_main_process:
        return
    content = InputsFile.read(run.paths.inputs)
    if None not in content.inputs.models.values():
        return
    models = {name: old or model_fingerprint(name, run.source.parent) for name, old in content.inputs.models.items()}
    inputs = content.inputs.model_copy(update={"models": models})
    content.model_copy(update={"inputs": inputs}).write(run.paths.inputs)
