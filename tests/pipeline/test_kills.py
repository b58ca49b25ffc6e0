"""Runs that get SIGKILL at chosen moments end, once they are resumed, with the weights of a run that was not killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rld.cli import main
from tests.kills import kills
from tests.pipeline.test_resume import RECIPE, steps, weights
from tests.support.processes import FORK_SERVER, exit_codes, train_quietly
from tests.support.runs import one_thread, recipe, whole

__all__ = ["RECIPE", "one_thread", "recipe", "whole"]

MOMENTS: dict[str, Callable[[Path], bool]] = {
    "in a checkpoint": lambda run: any(
        not (path / "rld_files.json").exists() for path in run.glob("checkpoints/teacher/checkpoint-[46]")
    ),
    "after a stage's last update": lambda run: (run / "checkpoints/teacher/checkpoint-6/rld_files.json").exists(),
    "while a result is written": lambda run: any(run.glob("models/*.draft")) or (run / "models/teacher").exists(),
    "in the last stage": lambda run: (run / "checkpoints/student/checkpoint-2").exists(),
    "at the end": lambda run: (run / "student.draft").exists() or (run / "student").exists(),
}


def kill_when(is_moment: Callable[[Path], bool], recipe: Path, run: Path) -> None:
    """Start or resume a run, and kill it at a moment, or let it end if the moment does not come."""
    arguments = [str(recipe), "--output", str(run), "--resume"]
    process = FORK_SERVER.Process(target=train_quietly, args=(arguments, run.with_suffix(".log")))
    process.start()
    deadline = time.monotonic() + 240
    while process.exitcode is None and not is_moment(run) and time.monotonic() < deadline:
        time.sleep(0.0005)
    exit_codes([process], 0.0)
    assert time.monotonic() < deadline, "it neither ended nor came to that moment"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(recipe, whole, tmp_path):
    run = tmp_path / "run"
    for is_moment in MOMENTS.values():
        kill_when(is_moment, recipe, run)
    assert main(["train", str(recipe), "--output", str(run), "--resume"]) == 0
    assert weights(run) == weights(whole)
    assert steps(run) == steps(whole)
    names = {path.name for path in run.iterdir()} - {"train.log"}
    assert names == {path.name for path in whole.iterdir()}
    assert not list(run.rglob("*.draft"))


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_when_one_of_two_processes_is_killed_the_other_ends_and_the_run_goes_on(tmp_path, way):
    """At few moments; `python -m tests.kills` tries more, and more kinds of stages."""
    for kill in kills(tmp_path, 1, seed=3, way=way, recipe_text=RECIPE):
        assert kill.problems == []
