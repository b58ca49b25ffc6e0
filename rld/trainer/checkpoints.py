"""Checkpoints that are either complete or absent, and the state that rld adds to them.

The Hugging Face trainer writes many files into a checkpoint; a process that is killed meanwhile leaves half of one.
rld writes its own state last, and whole: a checkpoint that has it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from rld.controllers.runtime import ControllerRuntime
from rld.data.prompt_stream import PromptStream
from rld.errors import CheckpointError
from rld.losses.feature_matching import FeatureProjections
from rld.rollout.gate import TeacherGate
from rld.rollout.record import RolloutTotals
from rld.teachers.teacher import Teacher
from rld.trainer.retention import RetentionCallback
from rld.utils.files import read_json, write_json
from rld.utils.flops import FlopMeter

STATE = "rld_state.json"
"""The file that a complete checkpoint has."""

VERSION = 4
"""Version of what that file holds."""

_PROJECTIONS = "rld_projections.safetensors"


@dataclass
class CheckpointedParts:
    """The parts of a trainer whose state a checkpoint holds beside TRL's."""

    teachers: Sequence[Teacher]
    runtime: ControllerRuntime
    totals: RolloutTotals
    flop_meter: FlopMeter
    gate: TeacherGate | None
    retention: RetentionCallback | None
    stream: PromptStream | None
    projections: FeatureProjections | None

    def save(
        self,
        folder: Path,
        accelerator: Accelerator,
        *,
        is_writer: bool,
        micro_step: int,
        rollout: Any | None,
        prompts_per_rollout: int,
    ) -> None:
        """Write the parts' state into a checkpoint.

        Args:
            folder: The checkpoint.
            accelerator: Waits for all processes.
            is_writer: Whether this process writes what is the same on all.
            micro_step: Micro-batches of the training so far.
            rollout: The micro-batches of the present rollout, if the next one is among them.
            prompts_per_rollout: Prompts of a rollout over all processes.
        """
        if rollout is not None:
            torch.save(rollout, _rollout_path(folder, accelerator.process_index))
        if self.gate is not None:
            self.gate.save(_gate_path(folder, accelerator.process_index))
        if self.retention is not None and is_writer:
            self.retention.save(folder)
        if self.projections is not None and is_writer:
            save_file(self.projections.state_dict(), folder / _PROJECTIONS)
        accelerator.wait_for_everyone()  # a complete checkpoint has every process's files
        if is_writer:
            num_finished = self.totals.rollouts - (rollout is not None)
            write_json(folder / STATE, self.state(num_finished * prompts_per_rollout) | {"micro_step": micro_step})

    def state(self, first_unused_prompt: int) -> dict[str, Any]:
        """Return the parts' state as JSON; prompts before `first_unused_prompt` are not drawn again."""
        state: dict[str, Any] = {
            "version": VERSION,
            "teachers": {teacher.name: teacher.fingerprint() for teacher in self.teachers},
            "runtime": self.runtime.state_dict(),
            "totals": vars(self.totals),
            "flops": self.flop_meter.accounts,
        }
        if self.retention is not None:
            state["retention"] = self.retention.state_dict()
        if self.stream is not None:
            state["stream"] = self.stream.state_dict(first_unused_prompt)
        return state

    def read(self, folder: Path) -> dict[str, Any]:
        """Return the state that a checkpoint holds, without restoring it.

        Raises:
            CheckpointError: the checkpoint is not this run's.
        """
        fingerprints = {t.name: t.fingerprint() for t in self.teachers}
        state = read_state(folder, self.stream is not None, fingerprints)
        is_bound = self.projections is not None or any(folder.glob("rld_rollout_*"))
        if is_bound and list(state["teachers"]) != list(fingerprints):
            raise CheckpointError(f"{folder}: teachers can't change inside a rollout, or with a feature signal")
        return state

    def restore(self, folder: Path, state: Mapping[str, Any], process_index: int) -> list[Any]:
        """Restore the parts from a checkpoint and what `read` returned.

        Returns:
            The events of the controller's runtime.
        """
        events = self.runtime.load_state_dict(state["runtime"])
        for name, value in state["totals"].items():
            setattr(self.totals, name, value)
        self.flop_meter.replace(state["flops"])
        if self.gate is not None:
            self.gate.load(_gate_path(folder, process_index))
        if self.retention is not None:
            self.retention.load(folder, state.get("retention"))
        if self.stream is not None:
            self.stream.load_state_dict(state["stream"])
            self.stream.allocate(self.runtime.weights.allocation)
        if self.projections is not None:
            self.projections.load_state_dict(load_file(folder / _PROJECTIONS))
        return events


def load_rollout(folder: Path, accelerator: Accelerator) -> Any:
    """Return the micro-batches of the rollout in which a checkpoint was written."""
    return torch.load(_rollout_path(folder, accelerator.process_index), map_location=accelerator.device)


def _rollout_path(folder: Path, process_index: int) -> Path:
    return folder / f"rld_rollout_{process_index}.pt"


def _gate_path(folder: Path, process_index: int) -> Path:
    return folder / f"rld_gate_{process_index}.json"


def read_state(folder: Path, has_stream: bool, teachers: Mapping[Any, str]) -> dict[str, Any]:
    """Return rld's state in a checkpoint.

    Args:
        folder: The checkpoint.
        has_stream: Whether the run's prompts are picked by a curriculum.
        teachers: The fingerprints of the run's teachers.

    Raises:
        CheckpointError: the checkpoint is not this run's.
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
    """Remove the checkpoints in `folder` that are not complete."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not _is_complete(checkpoint):
            shutil.rmtree(checkpoint)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`; None if there is none."""
    complete = [checkpoint for checkpoint in folder.glob("checkpoint-*") if _is_complete(checkpoint)]
    return max(complete, key=step, default=None)


def step(checkpoint: Path) -> int:
    """Return the number of optimiser steps after which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])
