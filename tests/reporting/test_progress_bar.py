"""What a stage tells while it trains, with the trainer's calls played by hand."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from rld.reporting import progress_bar
from rld.reporting.progress_bar import ProgressBar
from rld.reporting.run_log import RunLog
from rld.types import Event

STEPS = 6


class Played:
    """Calls a callback as a trainer would, with made-up logs."""

    def __init__(self, callback: RunLog | ProgressBar, args: TrainingArguments, is_main: bool = True) -> None:
        self.callback, self.args, self.control = callback, args, TrainerControl()
        self.state = TrainerState(max_steps=STEPS, is_world_process_zero=is_main)

    def begin(self, step: int = 0) -> Played:
        self.state.global_step = step
        self.callback.on_train_begin(self.args, self.state, self.control)
        return self

    def step(self, **logs: Any) -> None:
        self.state.global_step += 1
        self.control.should_log = True
        self.callback.on_step_end(self.args, self.state, self.control)
        self.callback.on_log(self.args, self.state, self.control, logs=dict(logs))

    def end(self) -> None:
        self.callback.on_log(self.args, self.state, self.control, logs={"train_runtime": 1.0, "train_loss": 0.5})
        self.callback.on_train_end(self.args, self.state, self.control)


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path / "out"), use_cpu=True)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_what_we_measure_under_our_names(tmp_path: Path, args: TrainingArguments) -> None:
    log = Played(RunLog(tmp_path, "main", 0.0, lambda: 7e9), args).begin()
    ours = {
        "loss": 0.5,
        "loss/policy": math.nan,
        "weight/response/sum": 0.25,
        "teacher/org/a/weight": 1.0,
        "entropy": None,
        "noise/policy/sum": 0.1,
        "aligned/policy/sum": -0.1,
        "tokens/generated": 12.0,
    }
    log.step(**ours, **{"rewards/exact_match/mean": 0.75, "rewards/exact_match/std": 0.1, "grad_norm": 1.0, "epoch": 1})
    log.end()
    [line] = records(tmp_path / "metrics.jsonl")
    assert line.pop("seconds") > 0
    expected = {"loss/policy": None, "reward/exact_match": 0.75}
    assert line == {"stage": "main", "step": 1, "flops": 7e9} | ours | expected


def test_the_loss_of_fine_tuning_is_that_of_its_signal(tmp_path: Path) -> None:
    log = Played(
        RunLog(tmp_path, "warm", 0.0, lambda: 0.0, supervised=True), SFTConfig(str(tmp_path / "out"), use_cpu=True)
    ).begin()
    log.step(loss=0.5, mean_token_accuracy=0.9)
    [line] = records(tmp_path / "metrics.jsonl")
    assert line["loss/sft"] == line["loss"] == 0.5
    assert "mean_token_accuracy" not in line


def play_stage(folder: Path, stage: str, args: TrainingArguments, first: int, last: int) -> None:
    log = RunLog(folder, stage, 0.0, lambda: 1.0)
    played = Played(log, args).begin(first)
    for step in range(first + 1, last + 1):
        log.events([Event(step, "signal off", "sum", "feature", "worth 0.01")] if step % 2 else [])
        played.step(loss=1 / step, **{"progress/sum": step / 10})


def test_a_killed_and_resumed_stage_leaves_the_same_files(tmp_path: Path, args: TrainingArguments) -> None:
    for folder in (tmp_path / "whole", tmp_path / "resumed"):
        folder.mkdir()
        play_stage(folder, "earlier", args, 0, STEPS)
    play_stage(tmp_path / "whole", "main", args, 0, STEPS)

    play_stage(tmp_path / "resumed", "main", args, 0, 5)
    for name in ("metrics.jsonl", "events.jsonl"):  # killed while it wrote, with a checkpoint at step 3
        with (tmp_path / "resumed" / name).open("a") as file:
            file.write('{"stage": "main", "step": 6, "lo')
    play_stage(tmp_path / "resumed", "main", args, 3, STEPS)

    for name in ("metrics.jsonl", "events.jsonl"):
        whole, resumed = records(tmp_path / "whole" / name), records(tmp_path / "resumed" / name)
        for line in whole + resumed:
            line.pop("seconds", None)
        assert resumed == whole
    assert len(records(tmp_path / "whole" / "metrics.jsonl")) == 2 * STEPS
    assert sorted(path.name for path in (tmp_path / "resumed").iterdir()) == ["events.jsonl", "metrics.jsonl"]


def test_damaged_lines_are_left_out_and_named(
    tmp_path: Path, args: TrainingArguments, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "main", "st\n{"stage": "first", "step": 2}\n')
    Played(RunLog(tmp_path, "main", 0.0, lambda: 0.0), args).begin()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"stage": "first", "step": 2}\n'
    assert "metrics.jsonl: line 1 is damaged and left out" in capsys.readouterr().err


def test_only_the_main_process_writes_and_shows(
    tmp_path: Path, args: TrainingArguments, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, "main", 0.0, lambda: 0.0)
    for callback in (log, ProgressBar("main", 1, 1)):
        played = Played(callback, args, is_main=False).begin()
        played.step(loss=0.5)
        log.events([Event(1, "signal off", "sum", "feature", "worth 0.01")])
        played.end()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


VALUES = {
    "loss": 0.125,
    "weight/policy": 0.6,
    "weight/policy/sum": 0.9,
    "weight/response": 0.4,
    "teacher/org/a/weight": 0.75,
    "teacher/org/a/weight/sum": 1.0,
    "progress/sum": 0.5,
    "progress/[b]odd": 0.25,
}


def test_without_a_terminal_a_plain_line_comes_every_ten_seconds(
    args: TrainingArguments, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    played = Played(ProgressBar("main", 2, 3), args).begin()
    for _ in range(STEPS):
        now += 4
        played.step(**VALUES)
    played.end()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"main (2 of 3): step {step}/6" for step in (0, 3, 6)]
    assert lines[1] == (
        "main (2 of 3): step 3/6, 0:00:12 left, loss 0.125; weights policy 0.60, response 0.40; "
        "teachers org/a 0.75; progress sum 0.50, [b]odd 0.25"
    )


class Terminal(io.StringIO):
    """A standard error that claims to be a terminal, and can hang up."""

    hung_up: type[OSError] | None = None

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.hung_up:
            raise self.hung_up("gone")
        return super().write(text)


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Make standard error a terminal of a size and kind; while a test runs, because pytest sets its own before."""

    def plugged(columns: int = 100, lines: int = 30, kind: str = "xterm") -> Terminal:
        for name, value in {"TERM": kind, "COLUMNS": str(columns), "LINES": str(lines)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(progress_bar, "_SECONDS_PER_FRAME", 0.0)
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert isinstance(sys.stderr, Terminal)
        return sys.stderr

    return plugged


def play_all(args: TrainingArguments) -> None:
    played = Played(ProgressBar("main", 2, 3), args).begin()
    for _ in range(STEPS):
        played.step(**VALUES)
    played.end()


def test_a_terminal_shows_everything_in_place_and_keeps_one_line(
    args: TrainingArguments, plug_in: Callable[..., Terminal]
) -> None:
    terminal = plug_in()
    play_all(args)
    shown = terminal.getvalue()
    for words in (
        "main (2 of 3)",
        "3/6, 0:00:00 left, loss 0.125",
        "policy 0.60, response 0.40",
        "org/a 0.75",
        "[b]odd",
    ):
        assert words in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor comes back
    assert shown.splitlines()[-1].endswith("progress sum 0.50, [b]odd 0.25")
    assert sys.stderr is terminal


@pytest.mark.parametrize(("columns", "lines"), [(1, 1), (7, 3), (20, 2), (300, 200)])
@pytest.mark.parametrize("kind", ["xterm", "dumb", "unknown-9"])
def test_no_terminal_is_too_odd(
    args: TrainingArguments, plug_in: Callable[..., Terminal], columns: int, lines: int, kind: str
) -> None:
    terminal = plug_in(columns, lines, kind)
    play_all(args)
    assert "step 6/6" in terminal.getvalue()


@pytest.mark.parametrize("error", [OSError, BrokenPipeError])
def test_training_survives_a_terminal_that_hangs_up(
    args: TrainingArguments, plug_in: Callable[..., Terminal], error: type[OSError]
) -> None:
    terminal = plug_in()
    played = Played(ProgressBar("main", 2, 3), args).begin()
    played.step(**VALUES)
    terminal.hung_up = error
    played.step(**VALUES)
    assert sys.stderr is terminal, "what others write goes to where it went before"
    played.end()
