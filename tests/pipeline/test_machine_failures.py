"""What the operating system refuses ends a command with one line, says what remains, and is no mistake of the user."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rld.cli import main
from rld.pipeline import summary
from rld.reporting.run_log import RunLog
from rld.trainer import checkpoints
from rld.utils.os_errors import as_os_error

RECIPE = """
name: short
tokenizer: {characters: "ab="}
max_new_tokens: 4
skills: {copy: {generator: "./tasks.py:copy", held_out: 2}}
models: {tiny: {new: llama, config: {hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1}}}
stages:
  - {name: first, kind: sft, student: tiny, steps: 1, batch: 2}
  - {name: second, kind: sft, student: first, steps: 3, batch: 2, checkpoint_every: 1}
"""  # noqa: E501 - one line is one key
TASKS = """
def copy(rng):
    word = "".join(rng.choices("ab", k=3))
    return word + "=", word
"""


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "short.yaml").write_text(RECIPE)
    (tmp_path / "tasks.py").write_text(TASKS)
    return str(tmp_path / "short.yaml")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_what_remains_and_the_run_resumes(recipe, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    on_log, write = RunLog.on_log, summary.SummaryWriter.write

    def on_log_until_full(self, args, state, *rest, **options):
        if self.stage == "second" and state.global_step == 3:
            full()
        on_log(self, args, state, *rest, **options)

    def write_until_full(self, status):
        return full() if status == "failed" else write(self, status)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "on_log", on_log_until_full)
        patch.setattr(summary.SummaryWriter, "write", write_until_full)
        assert main(["train", recipe, "--output", str(run)]) == 74
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "rld: summary.json could not be updated: No space left on device" in error
    assert f"No space left on device; free some space ({run}); the disk at /" in error
    assert "MiB left; finished stages: first, stage second has" in error
    assert checkpoints.latest(run / "checkpoints/second") is not None
    assert main(["train", recipe, "--output", str(run), "--resume"]) == 0


def test_a_folder_that_is_removed_ends_the_run_and_is_not_made_again(recipe, tmp_path, capsys, monkeypatch):
    on_log = RunLog.on_log

    def remove(self, args, state, *rest, **options):
        on_log(self, args, state, *rest, **options)
        if self.stage == "second" and state.global_step == 1:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(RunLog, "on_log", remove)
    assert main(["train", recipe, "--output", str(tmp_path / "run")]) == 74
    error = capsys.readouterr().err
    assert "recipe.json; it is not there, or no longer there" in error
    assert "is gone or cannot be read, so nothing of the run remains" in error


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "RECIPE", "--output", "file/run"], "a file is where a folder should be"),
        (["train", "RECIPE", "--output", "x" * 300], "choose a shorter name"),
        (["check", "x" * 300], "choose a shorter name"),
        (["report", "x" * 300], "choose a shorter name"),
        (["copy", "quickstart", "file/there"], "a file is where a folder should be"),
        (["train", "RECIPE", "--output", "/proc/run"], "/proc/run"),
    ],
)
def test_a_path_that_cannot_be_is_the_users_mistake(recipe, tmp_path, capsys, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main([recipe if word == "RECIPE" else word for word in words]) == 2
    assert expected in capsys.readouterr().err


def test_output_that_nobody_reads_and_output_to_a_full_disk_end_quietly():
    command = f"{sys.executable} -m rld list"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    full_disk = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, env=environment)
    assert (full_disk.returncode, full_disk.stderr) == (74, "rld: No space left on device; free some space\n")
    closed = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True, env=environment)
    assert "Traceback" not in closed.stderr


def test_errors_of_writers_in_other_languages_are_errors_of_the_system():
    class SafetensorError(Exception):
        pass

    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert as_os_error(SafetensorError(text)).errno == errno.ENOSPC
    assert (
        as_os_error(RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing"))
        is not None
    )
    assert as_os_error(RuntimeError("shapes differ")) is None


def test_a_mistake_that_was_made_while_a_file_was_looked_for_is_no_failure_of_the_machine():
    def mistake_during(number: int) -> RuntimeError:
        try:
            try:
                raise OSError(number, os.strerror(number))
            except OSError:
                raise RuntimeError("shapes differ")  # noqa: B904 - it is another mistake
        except RuntimeError as error:
            return error

    assert as_os_error(mistake_during(errno.ENOENT)) is None
    assert as_os_error(mistake_during(errno.ENOSPC)).errno == errno.ENOSPC
