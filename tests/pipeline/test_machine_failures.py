"""What the operating system refuses ends a command with one line, says what remains, and is no mistake of the user."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rld.cli import main
from rld.pipeline import summary
from rld.reporting.run_log import RunLog
from rld.trainer import checkpoints
from rld.utils import files
from rld.utils.manifest import write_manifest
from rld.utils.os_errors import as_os_error, describe_os_error
from tests.support.runs import SHORT, SHORT_TASKS, written

RECIPE = (
    SHORT
    + """
  - {name: first, kind: sft, student: tiny, steps: 1, batch: 2}
  - {name: second, kind: sft, student: first, steps: 3, batch: 2, checkpoint_every: 1}
"""
)


@pytest.fixture
def recipe(tmp_path) -> str:
    return str(written(tmp_path, RECIPE, SHORT_TASKS))


def full(*_: object, **__: object) -> None:
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
        assert "the same command with --resume goes on from there" in error
        assert main(["train", recipe, "--output", str(run), "--resume"]) == 74
        assert "once that is mended, the same command goes on from there" in capsys.readouterr().err
    assert "Traceback" not in error
    assert "rld: summary.json could not be updated: No space left on device" in error
    assert f"No space left on device; free some space ({run}); the disk at /" in error
    assert "MiB left; finished stages: first, stage second has" in error
    assert checkpoints.latest(run / "checkpoints/second") is not None
    assert main(["train", recipe, "--output", str(run), "--resume"]) == 0


def test_a_checkpoint_that_holds_code_is_refused_by_name(recipe, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "on_log", lambda self, args, state, *_, **__: full() if state.global_step == 3 else None)
        assert main(["train", recipe, "--output", str(run)]) == 74
    checkpoint = checkpoints.latest(run / "checkpoints/second")
    torch.save({"state": print}, checkpoint / "scheduler.pt")
    write_manifest(checkpoint)
    capsys.readouterr()
    assert main(["train", recipe, "--output", str(run), "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"{checkpoint} has a file that holds more than weights and numbers" in error
    assert "weights_only" not in error


def test_a_disk_that_is_full_at_the_start_is_named_with_the_file(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", full)
    assert main(["train", recipe, "--output", str(tmp_path / "run")]) == 74
    error = capsys.readouterr().err
    assert re.fullmatch(r"rld: No space left on device: \S+/run.lock.json; free some space; the disk at /.*\n", error)
    with pytest.raises(OSError, match="/dev/full"):
        files.append_jsonl(Path("/dev/full"), [{"step": 1}])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
@pytest.mark.parametrize("place", ["rld.cli.registry.find_recipe", "rld.pipeline.train._run_stages"])
def test_too_little_memory_is_one_line(recipe, tmp_path, capsys, monkeypatch, error, place):
    def fail(*_: object) -> None:
        try:
            raise error
        except type(error) as cause:
            raise RuntimeError("Failed to import transformers.models") from cause

    monkeypatch.setattr(place, fail)
    assert main(["train", recipe, "--output", str(tmp_path / "run")]) == 74
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("rld: .*memory.*; free some memory", line)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the limit of Linux")
def test_too_little_memory_for_the_imports_is_no_traceback_of_rld(recipe, tmp_path):
    command = f"ulimit -v 800000; exec {sys.executable} -m rld train {recipe} --output {tmp_path / 'run'}"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert process.returncode == 74, process.stderr
    assert "rld: there is not enough memory" in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr


def test_results_on_another_disk_are_replaced_there_and_a_dangling_link_is_refused(recipe, tmp_path, capsys):
    run, disk = tmp_path / "run", tmp_path / "disk"
    assert main(["train", recipe, "--output", str(run)]) == 0
    disk.mkdir()
    for name in ("student", "models", "checkpoints"):
        if (run / name).exists():
            shutil.move(run / name, disk / name)
        else:
            (disk / name).mkdir()
        (run / name).symlink_to(Path("../disk") / name)
    longer = ["train", recipe, "stages.first.steps=2", "--output", str(run), "--resume", "--accept-changes"]
    (disk / "student" / "rld_files.json").unlink()
    (disk / "models" / "first" / "rld_files.json").unlink()
    assert main(longer) == 0
    assert (run / "student").is_symlink() and (disk / "student" / "rld_files.json").is_file()
    assert (run / "models").is_symlink() and (disk / "models" / "first" / "rld_files.json").is_file()
    assert sorted(path.name for path in disk.iterdir()) == ["checkpoints", "models", "student"]
    (disk / "student").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(longer) == 2
    assert "run/student is a link to ../disk/student, which is not there" in capsys.readouterr().err


def test_a_folder_that_is_a_link_is_moved_and_removed_with_what_it_leads_to(tmp_path):
    (tmp_path / "disk" / "student").mkdir(parents=True)
    (tmp_path / "run" / "models").mkdir(parents=True)
    (tmp_path / "run" / "student").symlink_to("../disk/student")
    files.move_folder(tmp_path / "run" / "student", tmp_path / "run" / "models" / "first")
    assert (tmp_path / "run" / "models" / "first").is_dir() and not (tmp_path / "run" / "student").is_symlink()
    files.remove_folder(tmp_path / "run" / "models" / "first")
    assert [*(tmp_path / "disk").iterdir(), *(tmp_path / "run" / "models").iterdir()] == []


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_is_where_a_draft_is_to_be_is_removed_and_what_a_link_leads_to_stays(tmp_path, kind):
    other, draft = tmp_path / "other", tmp_path / "student.draft"
    if kind != "dangling link":
        other.mkdir()
        (other / "precious").touch()
    draft.touch() if kind == "file" else draft.symlink_to(other)
    with files.replace_folder(tmp_path / "student") as folder:
        (folder / "model").touch()
    assert (tmp_path / "student" / "model").is_file()
    if kind == "link":
        draft.symlink_to(other)
        files.remove_drafts(tmp_path)
        assert (other / "precious").is_file()
    assert not draft.is_symlink()


def test_what_may_not_be_read_is_told_without_advice_to_write_elsewhere():
    line = describe_os_error(PermissionError(errno.EACCES, "Permission denied", "weights"))
    assert line == "Permission denied: weights; change its permissions, or choose another path"


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
        (["train", "RECIPE", "--output", "unmounted/run"], "unmounted is a link to disk, which is not there; mount"),
    ],
)
def test_a_path_that_cannot_be_is_the_users_mistake(recipe, tmp_path, capsys, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("unmounted").symlink_to("disk")
    assert main([recipe if word == "RECIPE" else word for word in words]) == 2
    assert expected in capsys.readouterr().err


def test_a_copy_on_a_full_disk_is_named_and_leaves_no_part_of_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", full)
    assert main(["copy", "quickstart", str(tmp_path / "mine")]) == 74
    assert (
        f"No space left on device: {tmp_path / 'mine' / 'quickstart.yaml'}; free some space" in capsys.readouterr().err
    )
    assert not any((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    "place", ["data.stored.os.pread", "data.file_items.read_rows", "recipe.document.Path.read_text"]
)
def test_a_failure_of_the_machine_while_inputs_are_read_is_no_mistake_of_the_user(
    recipe, tmp_path, capsys, monkeypatch, place
):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "a{i}", "answer": "a"}}\n' for i in range(9)))
    rows = f"skills.rows={{file: {tmp_path / 'rows.jsonl'}, held_out: 2}}"
    words = ["check", recipe, rows, "tokenizer.characters=ab=0123456789"]
    assert main(words) == 0
    monkeypatch.setattr(f"rld.{place}", full)
    assert main(words) == 74
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["check", "r\udcff.yaml"], ["train", "RECIPE", "--output", "r\udcff"], ["report", "\udcff"]]
)
def test_a_name_that_is_not_in_utf_8_is_refused(recipe, capsys, words):
    assert main([recipe if word == "RECIPE" else word for word in words]) == 2
    assert "\\udcff" in (error := capsys.readouterr().err) and "is not in UTF-8" in error


def test_a_run_in_a_folder_whose_name_is_not_in_utf_8_is_refused(recipe, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "r\udcff"
    folder.mkdir()
    for name in ("small.yaml", "tasks.py"):
        shutil.copy(tmp_path / name, folder)
    monkeypatch.chdir(folder)
    assert main(["train", "small.yaml", "--output", "run"]) == 2
    assert "\\udcff/run' is not in UTF-8" in capsys.readouterr().err
    assert main(["train", "small.yaml", "--output", str(tmp_path / "run")]) == 0


def test_output_that_nobody_reads_and_output_to_a_full_disk_end_quietly():
    command = f"{sys.executable} -m rld list"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    full_disk = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, env=environment)
    assert (full_disk.returncode, full_disk.stderr) == (
        74,
        "rld: No space left on device: the standard output; free some space\n",
    )
    both = subprocess.run(f"{command} > /dev/full 2>&1", shell=True, env=environment)
    assert both.returncode == 74
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
