"""The page of a run that runs: its state, the time left, and what drawing it may take."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from rld.errors import CheckpointError
from rld.reporting import live_page
from rld.reporting.history import read_run
from rld.reporting.live_page import LARGEST_SHARE, LivePage
from rld.reporting.report import show_report, write_report
from rld.reporting.run_state import run_state
from tests.support import made_up_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is in its second stage, whose 80 updates so far took half a second each."""
    folder = made_up_run.make(tmp_path / "run", status="running")
    lines = (folder / "metrics.jsonl").read_text().splitlines()[: made_up_run.SFT_STEPS + 80]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "run.lock.json").write_text("{}")
    return folder


def shown(page: Path) -> str:
    return re.sub("<[^>]*>", "", page.read_text().split("</style>")[1])


def test_a_running_run_says_where_it_is_and_how_long_its_stage_still_takes(run: Path) -> None:
    state = run_state(read_run(run))
    assert state.seconds_left == pytest.approx((made_up_run.DISTILL_STEPS - 80) * 0.5)
    page = write_report(run)
    assert "The run is running. Stage 2 of 2, main: step 80 of 300; about 1.8 min left of its updates." in shown(page)
    assert "3 min 33 s" in shown(page)  # of the summary, which is newer here than the log
    assert '<meta http-equiv="refresh"' in page.read_text()


def test_a_stage_that_a_rule_may_end_takes_at_most_so_long(run: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["stages"][1]["stop"] = {"max_flops": 1e15, "score": {}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert "at most about 1.8 min" in str(run_state(read_run(run)))


def test_a_run_without_signs_of_life_was_killed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(run / "run.lock.json", (1.7e9, 1.7e9))
    show_report(run)
    for text in (shown(run / "report.html"), capsys.readouterr().out.replace("`", "")):
        assert "it was killed" in text and "Stage 2 of 2, main: step 80 of 300." in text
    assert "refresh" not in (run / "report.html").read_text().split("</head>")[0]


def test_a_finished_run_has_no_state_to_tell(tmp_path: Path) -> None:
    page = write_report(made_up_run.make(tmp_path / "run"))
    assert str(run_state(read_run(tmp_path / "run"))) == ""
    assert "refresh" not in page.read_text().split("</head>")[0]


def test_drawing_takes_a_hundredth_of_the_time_however_long_a_page_takes(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, drawn = 0.0, list[float]()

    def draw(_: Path) -> None:
        nonlocal now
        now += 0.01 if not drawn else 0.2 * (1 + now / 2000)  # the log grows
        drawn.append(now)

    monkeypatch.setattr(live_page, "write_report", draw)
    page = LivePage(run, clock=lambda: now)
    page.draw()
    assert drawn == [0.01]  # at once, however little time has passed
    for _ in range(2000):
        now += 5
        page.draw()
        assert page.seconds <= LARGEST_SHARE * now
    assert page.seconds > 0.8 * LARGEST_SHARE * now
    assert drawn[1] < 60


def test_what_prevents_a_page_is_told_once_and_ends_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = LivePage(run)
    (run / "recipe.json").write_text("{")
    page.draw()
    page.draw_last()
    monkeypatch.setattr(live_page, "write_report", lambda _: 1 / 0)
    page.draw_last()
    with pytest.raises(CheckpointError):
        write_report(run)
    first, second = capsys.readouterr().err.splitlines()
    assert "the run goes on without it" in first and "recipe.json is damaged" in first
    assert second == "rld: the report could not be drawn: ZeroDivisionError: division by zero"
