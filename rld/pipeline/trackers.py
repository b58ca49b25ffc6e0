"""What TensorBoard, trackio and W&B get of a stage beside what its trainer sends them: a place, scores, an end."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

from rld.trainer.training_progress import TrainingProgress
from rld.utils.files import remove_folder
from rld.utils.messages import one_line, tell


@contextmanager
def tracked(trainer: TrainingProgress, folder: Path, *, is_new: bool) -> Iterator[None]:
    """Keep the stage's logs of TensorBoard in a folder, and end its run of W&B with the block.

    transformers would write into the folder of the stage's checkpoints, which is removed with them, and go on with the
    same run of W&B in the next stage, whose steps begin anew. trackio ends its runs itself. A run of W&B whose block
    raises ends as failed; what goes wrong in ending it is told, and neither ends the stage nor hides its error.

    Args:
        trainer: The trainer of the stage.
        folder: The folder, unless the environment variable TENSORBOARD_LOGGING_DIR names another one.
        is_new: Whether the stage begins with its first update; what another try has left in the folder is removed.
    """
    callbacks = trainer.callback_handler.callbacks
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)
            if is_new and trainer.is_world_process_zero():
                remove_folder(folder)
    uses_wandb = any(isinstance(callback, WandbCallback) for callback in callbacks)
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        if uses_wandb and trainer.is_world_process_zero():
            _end_wandb(exit_code)


def _end_wandb(exit_code: int) -> None:
    try:
        importlib.import_module("wandb").finish(exit_code=exit_code)
    except Exception as error:
        tell(f"the run of W&B could not be ended: {type(error).__name__}: {one_line(error)}")


def send_scores(trainer: TrainingProgress, scores: Mapping[str, float]) -> None:
    """Send held-out scores as `score/<skill>`, at the trainer's present step; the run's own log ignores that."""
    logs = {f"score/{skill}": score for skill, score in scores.items()}
    trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, logs)
