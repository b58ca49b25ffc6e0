"""Whatever a run waits for: SIGTERM ends the run within ten seconds, and what never returns reaches a limit of time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rld.cli import main
from rld.data import prompt_stream, skill_rows
from rld.pipeline import curriculum_loading
from rld.pipeline.stage_training import StageTraining
from rld.reporting.run_log import RunLog
from rld.trainer import checkpoints
from rld.trainer.rld_trainer import RLDTrainer
from rld.utils import files, interrupts
from tests.support.processes import FORK, exit_codes, train_quietly
from tests.support.runs import one_thread, recipe

__all__ = ["one_thread", "recipe"]

RECIPE = """
name: small
tokenizer: {characters: "abcd:="}
max_new_tokens: 4
skills:
  copy: {generator: ./tasks.py:copy, levels: [{length: 2}, {length: 3}], held_out: 4}
models:
  tiny: {new: llama, config: {hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
rewards: [{use: ./tasks.py:exact}, {use: ./tasks.py:later}]
stages:
  - name: student
    kind: distill
    student: tiny
    rollout: {prompts: 2, completions: 2}
    curriculum: {use: ./tasks.py:Picks}
    steps: 4
    checkpoint_every: 1
"""

TASKS = """
import os, time
from pathlib import Path
from rld.types import Task

HERE = Path(__file__).parent

def hang(place, update=2):
    "Never return, where the environment says so, once there is a checkpoint."
    where, _, way = os.environ.get("HANG", "").partition(" ")
    if where != place or not (HERE / "go").exists():
        return
    (HERE / "hangs").touch()
    while True:
        try:
            time.sleep(60)
        except BaseException:
            if way != "catches":
                raise

def copy(rng, *, length):
    hang("generator")
    word = "".join(rng.choices("abcd", k=length))
    return f"a:{word}=", word

def exact(completions, answer, **_):
    hang("reward")
    return [float(c.strip() == a) for c, a in zip(completions, answer)]

async def later(completions, **_):
    hang("async")
    return [0.0] * len(completions)

class Picks:
    def __init__(self, levels): pass
    def next(self, rng):
        hang("next")
        return Task("copy", rng.randrange(2))
    def observe(self, task, successes, attempts): hang("observe")
    def state_dict(self): hang("state"); return {}
    def load_state_dict(self, state): pass
    def metrics(self): hang("metrics"); return {}
"""


@pytest.fixture
def folder(recipe: Path, tmp_path: Path) -> Iterator[Path]:
    for path in recipe.parent.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def go_after_an_update(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let user code hang from the second update on."""
    on_log = RunLog.on_log

    def noted(self, args, state, *rest, **options):
        on_log(self, args, state, *rest, **options)
        if state.global_step == 2:
            (folder / "go").touch()

    patch.setattr(RunLog, "on_log", noted)


def sleep_first(folder: Path, patch: pytest.MonkeyPatch, owner: type, name: str, seconds: float) -> None:
    """Have a method sleep before it does what it does, once user code may hang."""
    method = getattr(owner, name)

    def slow(self, *args, **options):
        if seconds and (folder / "go").exists():
            (folder / "hangs").touch()
            time.sleep(seconds)
        return method(self, *args, **options)

    patch.setattr(owner, name, slow)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(
    ("hang", "signals"),
    [
        *((hang, ["SIGTERM"]) for hang in ("reward", "reward catches", "async", "observe", "evaluation", "saving")),
        ("saving", ["SIGHUP", "SIGHUP"]),  # a terminal that is closed sends it, and so does its shell
    ],
)
def test_sigterm_and_a_closed_terminal_end_a_run_whatever_it_waits_for(folder, monkeypatch, hang, signals):
    """The run is a fork of this process, so that it has what is patched here."""
    go_after_an_update(folder, monkeypatch)
    if hang != "reward":  # which is tried with the waiting time of real runs
        monkeypatch.setattr(interrupts, "_SECONDS_TO_WAIT", 0.5)
    sleep_first(folder, monkeypatch, StageTraining, "_score", seconds=60.0 if hang == "evaluation" else 0.0)
    sleep_first(folder, monkeypatch, RLDTrainer, "_save_checkpoint", seconds=2.0 if hang == "saving" else 0.0)
    monkeypatch.setenv("HANG", hang)
    run, log = folder / "run", folder / "log"
    command = [str(folder / "small.yaml"), "stages.student.evaluate_every=1", "--output", str(run)]
    process = FORK.Process(target=train_quietly, args=(command, log))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which a run respects
    process.start()
    signal.signal(signal.SIGHUP, before)
    deadline = time.monotonic() + 120
    while not (folder / "hangs").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    start = time.monotonic()
    for name in signals:
        os.kill(process.pid, signal.Signals[name])
        time.sleep(0.2)
    code, text = exit_codes([process], 20.0)[0], log.read_text()
    assert code == 128 + signal.Signals[signals[0]], text
    assert time.monotonic() - start < 10
    assert "Traceback" not in text
    step = 3 if hang in ("evaluation", "saving") else 2
    assert checkpoints.latest(run / "checkpoints/student").name == f"checkpoint-{step}"
    (folder / "go").unlink()
    assert main(["train", *command, "--resume"]) == 0
    assert files.read_json(run / "summary.json")["status"] == "done"
    assert [line["step"] for line in files.read_jsonl(run / "metrics.jsonl").records] == [1, 2, 3, 4]


@pytest.mark.skipif(sys.platform == "win32", reason="no alarm signal")
@pytest.mark.parametrize("hang", ["async", "generator", "next", "state"])
def test_a_users_code_that_never_returns_reaches_a_limit_and_is_named(folder, monkeypatch, capsys, hang):
    go_after_an_update(folder, monkeypatch)
    monkeypatch.setenv("HANG", hang)
    for module in (prompt_stream, skill_rows, curriculum_loading):
        monkeypatch.setattr(module, "CALL_SECONDS", 0.5)
    limits = [f"rewards.{i}.timeout_seconds=0.5" for i in (0, 1)]
    assert main(["train", str(folder / "small.yaml"), *limits, "--output", str(folder / "run")]) == 2
    error = capsys.readouterr().err
    assert "did not return within" in error
    assert "Traceback" not in error
