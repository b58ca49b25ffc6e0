"""Checkpoints that are either complete or absent, and the state that rld adds to them.

The Hugging Face trainer writes many files into a checkpoint; a process that is killed meanwhile leaves half of one.
rld writes its own state and then a manifest of all files, whole: a checkpoint that has the manifest is complete. When a
run is resumed, the sizes and hashes in the manifest show whether the files are still those that were written.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor

from rld.controllers.runtime import ControllerRuntime
from rld.data.prompt_stream import PromptStream
from rld.errors import CheckpointError
from rld.losses.feature_matching import FeatureProjections
from rld.rollout.accepted_answers import AcceptedAnswers
from rld.rollout.label_priors import LabelPriors
from rld.rollout.record import RolloutTotals
from rld.rollout.teacher_scoring import TeacherScoring
from rld.teachers.self_teacher import SelfTeacher
from rld.teachers.teacher import Teacher
from rld.trainer.retention import RetentionCallback
from rld.utils.files import read_json, write_json
from rld.utils.flops import FlopMeter
from rld.utils.manifest import damage, has_manifest, write_manifest

STATE = "rld_state.json"
"""The file with rld's own state."""

VERSION = 20
"""Version of what that file and those beside it hold."""

_PROJECTIONS = "rld_projections.safetensors"

_AVERAGES = "rld_averages.safetensors"
"""The file with the running averages of the student, under the names of the teachers that they are."""

_GATE = "rld_gate.json"

_PRIORS = "rld_label_priors.safetensors"
"""The file with the teachers' latest distributions over labels."""


@dataclass
class CheckpointedParts:
    """The parts of a trainer whose state a checkpoint holds beside TRL's."""

    teachers: Sequence[Teacher]
    runtime: ControllerRuntime
    totals: RolloutTotals
    flop_meter: FlopMeter
    scoring: TeacherScoring
    answers: AcceptedAnswers | None
    retention: RetentionCallback | None
    stream: PromptStream | None
    projections: FeatureProjections | None

    @property
    def _label_priors(self) -> LabelPriors | None:
        return None if self.scoring.label_scores is None else self.scoring.label_scores.priors

    def save(
        self,
        folder: Path,
        accelerator: Accelerator,
        *,
        is_writer: bool,
        projections: Mapping[str, Tensor],
        progress: Mapping[str, int],
        rollout: Any | None,
        prompts_per_rollout: int,
    ) -> None:
        """Write the parts' state into a checkpoint.

        Args:
            folder: The checkpoint.
            accelerator: Waits for all processes.
            is_writer: Whether this process writes what is the same on all.
            projections: The whole state of the feature signal's projections; empty without that signal.
            progress: Counts of the trainer: `micro_step`, its micro-batches, and `skipped`, its last updates.
            rollout: The micro-batches of the present rollout, if the next one is among them.
            prompts_per_rollout: Prompts of a rollout over all processes.
        """
        if rollout is not None:
            torch.save(rollout, _rollout_path(folder, accelerator.process_index))
        if self.scoring.gate is not None and is_writer:
            self.scoring.gate.save(folder / _GATE)
        if self._label_priors is not None and is_writer:
            self._label_priors.save(folder / _PRIORS)
        if self.retention is not None and is_writer:
            self.retention.save(folder)
        if self.projections is not None and is_writer:
            save_file(dict(projections), folder / _PROJECTIONS)
        if is_writer:
            _save_averages(self.teachers, folder)
        num_finished = self.totals.rollouts - (rollout is not None)
        state = {**self.state(num_finished * prompts_per_rollout), **progress}
        complete(folder, state, accelerator, is_writer=is_writer)

    def state(self, first_unused_prompt: int) -> dict[str, Any]:
        """Return the parts' state as JSON; prompts before `first_unused_prompt` are not drawn again."""
        state: dict[str, Any] = {
            "teachers": {teacher.name: teacher.fingerprint() for teacher in self.teachers},
            "runtime": self.runtime.state_dict(),
            "totals": vars(self.totals),
            "flops": self.flop_meter.parts,
            "has_gate": self.scoring.gate is not None,
        }
        if self.answers is not None:
            state["answers"] = self.answers.state_dict()
        if self.retention is not None:
            state["retention"] = self.retention.state_dict()
        if self.stream is not None:
            state["stream"] = self.stream.state_dict(first_unused_prompt)
        return state

    def read(self, folder: Path, num_processes: int) -> dict[str, Any]:
        """Return the state that a checkpoint holds, without restoring it.

        Raises:
            CheckpointError: the checkpoint is not this run's.
        """
        fingerprints = {t.name: t.fingerprint() for t in self.teachers}
        state = read_state(folder, self.stream is not None, fingerprints)
        is_in_rollout = any(folder.glob("rld_rollout_*"))
        if is_in_rollout and state["num_processes"] != num_processes:
            count = state["num_processes"]
            raise CheckpointError(
                f"{folder} was written inside a rollout of {count} processes: resume with {count}, or remove it, to "
                "go on from the one before"
            )
        if state["has_gate"] and not (folder / _GATE).is_file():
            raise CheckpointError(f"{folder} lacks {_GATE}, what its gate knows; go on from another checkpoint")
        is_bound = self.projections is not None or is_in_rollout
        if is_bound and list(state["teachers"]) != list(fingerprints):
            raise CheckpointError(f"{folder}: teachers can't change inside a rollout, or with a feature signal")
        return state

    def restore(self, folder: Path, state: Mapping[str, Any]) -> list[Any]:
        """Restore the parts from a checkpoint and what `read` returned.

        Returns:
            The events of the controller's runtime.
        """
        events = self.runtime.load_state_dict(state["runtime"])
        for name, value in state["totals"].items():
            setattr(self.totals, name, value)
        self.flop_meter.replace(state["flops"])
        if self.scoring.gate is not None and state["has_gate"]:
            self.scoring.gate.load(folder / _GATE)
        if self._label_priors is not None and (folder / _PRIORS).is_file():  # absent if the option is new
            self._label_priors.load(folder / _PRIORS)
        _load_averages(self.teachers, folder)
        is_new = any(teacher.name not in state["teachers"] for teacher in self.teachers)
        if self.answers is not None and "answers" in state and not is_new:  # a new teacher may answer what none did
            self.answers.load_state_dict(state["answers"])
        if self.retention is not None:
            self.retention.load(folder, state.get("retention"))
        if self.stream is not None:
            self.stream.load_state_dict(state["stream"])
            self.stream.allocate(self.runtime.weights.allocation)
        return events

    def restore_projections(self, folder: Path, num_processes: int) -> None:
        """Restore the feature signal's projections, which are trained with the student, before processes share them.

        Raises:
            CheckpointError: the checkpoint is not this run's.
        """
        if self.projections is not None:
            self.read(folder, num_processes)
            self.projections.load_state_dict(load_file(folder / _PROJECTIONS))


def _save_averages(teachers: Sequence[Teacher], folder: Path) -> None:
    averages = {
        f"{teacher.name}/{name}": value.contiguous()
        for teacher in teachers
        if isinstance(teacher, SelfTeacher)
        for name, value in teacher.state_dict().items()
    }
    if averages:
        save_file(averages, folder / _AVERAGES)


def _load_averages(teachers: Sequence[Teacher], folder: Path) -> None:
    path = folder / _AVERAGES
    averages = load_file(path) if path.is_file() else {}
    for teacher in teachers:
        if isinstance(teacher, SelfTeacher):
            prefix = f"{teacher.name}/"
            of_teacher = {name: value for name, value in averages.items() if name.startswith(prefix)}
            teacher.load_state_dict({name.removeprefix(prefix): value for name, value in of_teacher.items()})


def load_rollout(folder: Path, accelerator: Accelerator) -> Any:
    """Return the micro-batches of the rollout in which a checkpoint was written."""
    # The device of a CPU process is cpu:0 where there are several, to which torch.load can't map.
    rollout = torch.load(_rollout_path(folder, accelerator.process_index), map_location="cpu", weights_only=True)
    return send_to_device(rollout, accelerator.device)


def _rollout_path(folder: Path, process_index: int) -> Path:
    return folder / f"rld_rollout_{process_index}.pt"


def read_state(folder: Path, has_stream: bool, teachers: Mapping[Any, str]) -> dict[str, Any]:
    """Return rld's state in a checkpoint.

    Args:
        folder: The checkpoint.
        has_stream: Whether the run's prompts are picked by a curriculum.
        teachers: The fingerprints of the run's teachers.

    Raises:
        CheckpointError: the checkpoint is not this run's.
    """
    state = require_version(folder)
    if ("stream" in state) != has_stream:
        raise CheckpointError(f"{folder} was written with another kind of training set")
    for name, fingerprint in teachers.items():
        if state["teachers"].get(name, fingerprint) != fingerprint:
            fix = "restore them, or give the teacher another name, so that it joins as a new one"
            raise CheckpointError(f"{folder} was written with other weights of teacher '{name}'; {fix}")
    return state


def require_version(folder: Path) -> dict[str, Any]:
    """Return rld's state in a checkpoint of any kind of stage.

    Raises:
        CheckpointError: it was written by another version of rld.
    """
    state = read_json(folder / STATE)
    if state.get("version") != VERSION:
        raise CheckpointError(f"{folder} was written by another version of rld; start the run in a new folder")
    return state


def complete(folder: Path, state: Mapping[str, Any], accelerator: Accelerator, *, is_writer: bool) -> None:
    """Add rld's state to a checkpoint that has all other files of this process, and mark it complete."""
    accelerator.wait_for_everyone()  # a complete checkpoint has every process's files
    if is_writer:
        num_processes = accelerator.num_processes
        write_json(folder / STATE, {"version": VERSION, "num_processes": num_processes, **state})
        write_manifest(folder)


def remove_unusable(folder: Path) -> list[str]:
    """Remove the checkpoints in `folder` that are incomplete, or damaged and newer than the newest sound one.

    Returns:
        A message about each, for the user.
    """
    messages = []
    for checkpoint in sorted(_checkpoints(folder), key=step, reverse=True):
        problem = damage(checkpoint)
        if problem is None:
            break
        messages.append(f"{checkpoint} {problem}, so it is removed")
        shutil.rmtree(checkpoint)
    return messages


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in `folder`; None if there is none."""
    return max((checkpoint for checkpoint in _checkpoints(folder) if has_manifest(checkpoint)), default=None, key=step)


def step(checkpoint: Path) -> int:
    """Return the number of optimiser steps after which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders that are named as the Hugging Face trainer names checkpoints."""
    matches = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name)]
    return [path for path in matches if path.is_dir() and not path.is_symlink()]
