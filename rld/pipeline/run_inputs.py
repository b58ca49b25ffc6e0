"""Record in a run's folder what the run depends on, and refuse or tell what of it has changed since its start."""

from __future__ import annotations

import time
from collections.abc import Callable

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rld.errors import CheckpointError
from rld.pipeline.run import RunContext
from rld.recipe.input_changes import Effect, InputChange, input_changes
from rld.recipe.inputs import AcceptedChanges, Inputs, InputsFile, model_fingerprint
from rld.trainer import checkpoints
from rld.utils import files
from rld.utils.messages import tell

_ACCEPT = "--accept-changes"


def record_inputs(run: RunContext, accepts_changes: bool) -> None:
    """Write a run's inputs and its resolved recipe to its folder; of a run that is resumed compare the inputs first.

    Args:
        accepts_changes: Whether the run may go on with inputs that change its numbers.

    Raises:
        CheckpointError: on every process, the run cannot go on, or the changes are not accepted; names each.
    """
    _on_main_process(run.state, lambda: _record(run, accepts_changes))


def _on_main_process(state: PartialState, function: Callable[[], None]) -> None:
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
        finished = [stage.name for stage in run.recipe.stages if run.paths.stage_record(stage.name) is not None]
        changes = [] if previous is None else input_changes(previous, current, finished, run.folder)
        if previous is not None:
            _require_accepted(run, changes, accepts_changes)
            current = _with_known_models(current, previous)
        texts = [change.text for change in changes] if previous else [f"{run.paths.inputs.name} was lost or damaged"]
        if texts:
            history = [*history, _from_here(run, texts)]
            tell(f"{run.folder}: {history[-1]}")
    run.folder.mkdir(parents=True, exist_ok=True)
    InputsFile(inputs=current, changes=history).write(run.paths.inputs)
    files.write_json(run.paths.recipe, current.recipe)


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
    if impossible := [change.text for change in changes if change.effect is Effect.IMPOSSIBLE]:
        raise CheckpointError("\n".join(f"{run.folder} cannot go on: {text}" for text in impossible))
    serious = [change.text for change in changes if change.effect is Effect.NEEDS_CONSENT]
    if serious and not accepts_changes:
        lines = [f"{run.folder} was started with other inputs:", *(f"  {text}" for text in serious)]
        done = run.paths.models / run.recipe.stages[0].name
        lines.append(
            f"resume with the same inputs; or add {_ACCEPT} to go on with these, which the run then records; or choose "
            f"another --output, where `models` may name what is done, such as {done}"
        )
        raise CheckpointError("\n".join(lines))


def _with_known_models(current: Inputs, previous: Inputs) -> Inputs:
    """Return inputs in which a model that is not on this machine any more has its earlier fingerprint."""
    models = {name: previous.models.get(name) if print_ is None else print_ for name, print_ in current.models.items()}
    return current.model_copy(update={"models": models})


def _from_here(run: RunContext, texts: list[str]) -> AcceptedChanges:
    """Return changes with the stage and the update from which the run goes on."""
    names = [stage.name for stage in run.recipe.stages]
    stage = next((name for name in names if run.paths.stage_record(name) is None), None)
    checkpoint = checkpoints.latest(run.paths.checkpoints(stage)) if stage is not None else None
    step = checkpoints.step(checkpoint) if checkpoint else 0
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return AcceptedChanges(stage=stage or names[-1], step=step + 1, time=now, changes=texts)


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
