"""Checkpoints that are either complete or absent.

The Hugging Face trainer writes many files into a checkpoint; a process killed among them leaves half of one. `rld`
writes its own state last, by renaming a finished file into place: a checkpoint that has it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rld.errors import CheckpointError
from rld.utils.files import read_json

STATE = "rld_state.json"

VERSION = 4
"""Of what a checkpoint holds in it."""


def read_state(folder: Path, has_stream: bool, teachers: Mapping[Any, str]) -> dict[str, Any]:
    """Read rld's state in a checkpoint, for a run with these teachers, by their fingerprints.

    Raises:
        CheckpointError: it is not this run's.
    """
    state = read_json(folder / STATE)
    if state["version"] != VERSION or ("stream" in state) != has_stream:
        raise CheckpointError(f"{folder} was written by another rld, or with another kind of training set")
    for name, fingerprint in teachers.items():
        if state["teachers"].get(name, fingerprint) != fingerprint:
            raise CheckpointError(f"{folder} was written with other weights of teacher '{name}'")
    return state


def _is_complete(checkpoint: Path) -> bool:
    return (checkpoint / STATE).is_file()


def remove_incomplete(folder: Path) -> None:
    """Remove checkpoints in `folder` that a killed process left half-written."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not _is_complete(checkpoint):
            shutil.rmtree(checkpoint)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`; None when there is none."""
    complete = [checkpoint for checkpoint in folder.glob("checkpoint-*") if _is_complete(checkpoint)]
    return max(complete, key=step, default=None)


def step(checkpoint: Path) -> int:
    """Return the optimiser steps after which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])
