"""Which stages of a run are done, stale, or to do."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

from rld.errors import CheckpointError
from rld.recipe.inputs import Inputs
from rld.utils.files import Record, read_json
from rld.utils.manifest import has_manifest
from rld.utils.run_folder import RunFolder, stage_record_path


class StageState(Enum):
    """How far a stage is."""

    DONE = "done"
    STALE = "stale"
    """It was finished with other inputs than the run has now, and runs again."""
    TO_DO = "to do"


class StageProgress(NamedTuple):
    """A stage, its state, the step of its newest complete checkpoint if it has one, and why it is stale."""

    stage: str
    state: StageState
    checkpoint: int | None
    reason: str = ""

    @property
    def is_started(self) -> bool:
        """Whether it goes on from a checkpoint."""
        return self.state is not StageState.DONE and self.checkpoint is not None

    def __str__(self) -> str:
        start = f", goes on behind step {self.checkpoint}" if self.is_started else ""
        return f"{self.state.value}{start}" + (f": {self.reason}" if self.reason else "")


def run_progress(inputs: Inputs, folder: RunFolder) -> list[StageProgress]:
    """Return how far each stage of a run is.

    Args:
        inputs: The inputs that the run has now.
        folder: The run's folder, whose results may still be those of another recipe.
    """
    progress: dict[str, StageProgress] = {}
    for name, needs in inputs.stages.items():
        checkpoint = _last_step(folder, name)
        record = _record(folder, name)
        if record is None:
            progress[name] = StageProgress(name, StageState.TO_DO, checkpoint)
        elif record.get("fingerprint") == inputs.fingerprint(name):
            progress[name] = StageProgress(name, StageState.DONE, checkpoint)
        else:
            changed = [other for other in needs.stages if progress[other].state is StageState.STALE]
            reason = f"it depends on {', '.join(changed)}" if changed else "its inputs have changed"
            progress[name] = StageProgress(name, StageState.STALE, checkpoint, reason)
    return list(progress.values())


def _record(folder: RunFolder, stage: str) -> Record | None:
    """Return the record of a stage, also where the stage was the last one when it ran, or is it only now."""
    for result in (folder.stage_result(stage), folder.models / stage, folder.student):
        path = stage_record_path(result)
        try:
            record = read_json(path) if path.is_file() else {}
        except CheckpointError:  # a resumed run restores it, or trains the stage again
            record = {}
        if record.get("name") == stage:
            return record
    return None


def _last_step(folder: RunFolder, stage: str) -> int | None:
    paths = [path for path in folder.checkpoints(stage).glob("checkpoint-*") if has_manifest(path)]
    numbers = [re.fullmatch(r"checkpoint-([0-9]+)", path.name) for path in paths]
    return max((int(number[1]) for number in numbers if number is not None), default=None)
