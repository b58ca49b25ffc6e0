"""One process writes into a run's folder, and none outlives the process that started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rld.cli import main
from rld.errors import UsageError
from rld.utils import folder_lock
from rld.utils.files import write_json
from rld.utils.folder_lock import locked

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from rld.utils.folder_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import time
from rld.utils.interrupts import end_with_parent
end_with_parent()
print("watches its parent", flush=True)
time.sleep(60)
"""
RECIPE = """
name: small
skills: {sum: {reasoning_gym: chain_sum, levels: [{min_terms: 2}]}}
models: {student: no/model}
stages: [{name: a, kind: sft, student: student, steps: 1}]
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_process_is_refused_by_name_until_the_first_is_dead(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text(RECIPE)
    folder = tmp_path / "run"
    process = start(HOLD, str(folder))
    try:
        assert first_line(process) == "held"
        for options in ([], ["--resume"]):
            assert main(["train", str(tmp_path / "small.yaml"), "--output", str(folder), *options]) == 2
            message = capsys.readouterr().err
            assert f"in use by process {process.pid} on " in message
            assert "started 20" in message
        arms = ["--arms", "a: stages.a.steps=1; b: stages.a.steps=2", "--seeds", "1"]
        assert main(["ablate", str(tmp_path / "small.yaml"), "--output", str(folder), *arms]) == 2
        assert "in use by process" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert json.loads((folder / "run.lock.json").read_text())["pid"] == process.pid  # it could not clean up
    with locked(folder):
        pass
    assert f"in use by process {process.pid} on " in (told := capsys.readouterr().err)
    assert "which has ended without a word; its lock is taken over" in told
    assert list(folder.iterdir()) == []


def test_the_number_of_a_process_decides_nothing(tmp_path, capsys):
    """A later process, here this one, may have the number of the holder that died."""
    holder = {"pid": os.getpid(), "host": "here", "machine": folder_lock._machine(), "started": "2026"}
    (tmp_path / "run.lock.json").write_text(json.dumps(holder | {"command": "rld"}))
    with locked(tmp_path):
        assert json.loads((tmp_path / "run.lock.json").read_text())["started"] != "2026"
    assert "its lock is taken over" in capsys.readouterr().err


def test_a_holder_on_another_machine_is_refused_while_it_gives_signs_of_life(tmp_path, capsys, monkeypatch):
    """On a file system that doesn't share locks between machines."""
    monkeypatch.setattr(folder_lock, "_SECONDS_PER_SIGN", 0.2)
    monkeypatch.setattr(folder_lock, "_SECONDS_TO_WATCH", 1.0)
    path, ended = tmp_path / "run.lock.json", threading.Event()
    holder = {"pid": 7, "host": "there", "machine": "another", "started": "2026", "command": "rld"}
    write_json(path, holder)

    def live() -> None:
        while not ended.wait(0.2):
            write_json(path, holder | {"sign": time.monotonic()})

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(UsageError, match="is in use by process 7 on there"), locked(tmp_path):
            pass
    finally:
        ended.set()
        thread.join()
    assert path.is_file()  # it is the holder's
    with locked(tmp_path):
        time.sleep(0.5)
        assert json.loads(path.read_text())["sign"] > 0
    assert "process 7 on there" in capsys.readouterr().err.splitlines()[-1]
    assert not path.exists()


HOLD_AND_STOP = """
import sys, time
from pathlib import Path
from rld.utils import folder_lock
from rld.utils.interrupts import StopRequest, stop_on_signals
folder = Path(sys.argv[1])
folder_lock._SECONDS_PER_SIGN = float(sys.argv[2])
with stop_on_signals(StopRequest("stopping")) as stop, folder_lock.locked(folder):
    print("held", flush=True)
    while not stop.is_made():
        time.sleep(0.05)
    (folder / "checkpoint").touch()
"""
OTHER = {"id": "b", "pid": 7, "host": "there", "machine": "another", "started": "2026", "command": "rld"}


def test_a_process_whose_lock_was_taken_over_ends_without_a_checkpoint(tmp_path):
    process = start(HOLD_AND_STOP, str(tmp_path), "0.5")
    assert first_line(process) == "held"
    write_json(tmp_path / "run.lock.json", OTHER)
    assert process.wait(20) == 2
    assert json.loads((tmp_path / "run.lock.json").read_text()) == OTHER
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock", "run.lock.json"}


def test_the_record_of_who_took_over_outlives_the_end_of_the_one_before(tmp_path):
    """Which ends before it has noticed."""
    with locked(tmp_path):
        write_json(tmp_path / "run.lock.json", OTHER)
    assert json.loads((tmp_path / "run.lock.json").read_text()) == OTHER
    assert (tmp_path / "run.lock").exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_a_holder_whose_record_is_gone_or_damaged_writes_it_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(folder_lock, "_SECONDS_PER_SIGN", 0.1)
    path = tmp_path / "run.lock.json"
    with locked(tmp_path):
        damage(path)
        wait_until(lambda: bool(folder_lock._holder(tmp_path)))
        assert json.loads(path.read_text())["pid"] == os.getpid()


WATCH = """
import sys, time
from pathlib import Path
from rld.utils import folder_lock
folder_lock._SECONDS_PER_SIGN, folder_lock._SECONDS_TO_WATCH = 0.5, 1.0
folder_lock._LOCK = sys.argv[2]  # two machines that do not share the lock
folder_lock._machine = lambda: sys.argv[2]
print("ready", flush=True)
while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
try:
    with folder_lock.locked(Path(sys.argv[1])):
        print("in", flush=True)
        time.sleep(2)
except folder_lock.UsageError as error:
    print(error, flush=True)
"""


def test_of_two_that_wait_for_the_end_of_a_dead_holder_one_goes_in(tmp_path):
    write_json(tmp_path / "run.lock.json", OTHER)
    go = tmp_path / "go"
    waiters = [start(WATCH, str(tmp_path), machine, str(go)) for machine in ("m1", "m2")]
    assert [first_line(process) for process in waiters] == ["ready", "ready"]
    go.touch()
    ends = [process.communicate(timeout=60)[0].strip() for process in waiters]
    assert ends.count("in") == 1
    (refused,) = [end for end in ends if end != "in"]
    winner = waiters[ends.index("in")]
    assert f"is in use by process {winner.pid} on " in refused
    assert not (tmp_path / "run.lock.json").exists()


def test_a_holder_that_ends_while_it_is_watched_is_not_in_use(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(folder_lock, "_SECONDS_PER_SIGN", 0.2)
    path = tmp_path / "run.lock.json"
    write_json(path, OTHER)
    threading.Timer(0.5, path.unlink).start()
    with locked(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert "taken over" not in capsys.readouterr().err


def test_a_damaged_record_is_watched(tmp_path, capsys, monkeypatch):
    """It may be that of a holder on another machine, which then writes it anew."""
    monkeypatch.setattr(folder_lock, "_SECONDS_PER_SIGN", 0.2)
    path = tmp_path / "run.lock.json"
    path.write_text("{")
    threading.Timer(0.5, write_json, (path, OTHER)).start()
    with pytest.raises(UsageError, match="is in use by process 7 on there"), locked(tmp_path):
        pass
    assert "waiting 15 s for a sign of life from another process" in capsys.readouterr().err


def test_a_refused_run_leaves_no_folder_and_a_file_is_no_folder(tmp_path):
    with locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"), locked(tmp_path / "file"):
        pass


FORKING = """
import multiprocessing, sys, time
from rld.utils.interrupts import end_with_parent

def child():
    end_with_parent()
    print("watches its parent", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=child)
    process.start()
    print(process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("way", ["subprocess", "forkserver"])
@pytest.mark.skipif(sys.platform == "win32", reason="a process does not learn there that its parent has ended")
def test_a_process_ends_with_a_parent_that_was_killed(tmp_path, way):
    (tmp_path / "forking.py").write_text(FORKING)  # its child imports it
    if way == "subprocess":
        parent = start(PARENT, CHILD)
    else:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(tmp_path / "forking.py")]
        parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    child = int(first_line(parent))
    assert first_line(parent) == "watches its parent"
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    def is_gone() -> bool:
        stat = Path(f"/proc/{child}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(is_gone)
