"""A run draws its report at checkpoints, and ends it with what became of the run."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rld.cli import main
from rld.pipeline.summary import SummaryWriter
from rld.reporting import live_page
from rld.reporting.report import write_report
from tests.support.runs import SHORT, SHORT_TASKS, Killed, written

RECIPE = (
    SHORT
    + """
  - {name: first, kind: sft, student: tiny, steps: 2, batch: 2, checkpoint_every: 1}
  - {name: second, kind: sft, student: first, steps: 3, batch: 2, checkpoint_every: 2}
"""
)


def place(page: Path) -> str:
    """Return the state on a page, and where it says the run is."""
    text = page.read_text()
    state = re.findall(r'<span class="pill \w+">(\w+)', text)
    stage = re.findall(r"Stage (\d of \d, <code>\w+</code>: step \d)", text)
    return ": ".join([*state, *(re.sub("<[^>]*>", "", one) for one in stage)])


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each page says that a run draws while it runs, however much of its time that takes."""
    places = list[str]()

    def draw(run: Path) -> None:
        places.append(place(write_report(run)))

    monkeypatch.setattr(live_page, "LARGEST_SHARE", 1e9)
    monkeypatch.setattr(live_page, "write_report", draw)
    return places


def test_the_page_follows_the_run_also_behind_a_checkpoint(
    tmp_path: Path, pages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run, draw = written(tmp_path, RECIPE, SHORT_TASKS), tmp_path / "run", live_page.write_report

    def draw_until_killed(folder: Path) -> None:
        draw(folder)
        if pages[-1].endswith("second: step 2"):
            raise Killed

    with monkeypatch.context() as context:
        context.setattr(live_page, "write_report", draw_until_killed)
        with pytest.raises(Killed):
            main(["train", str(recipe), "--output", str(run)])
    ways = ["1 of 2, first: step 0", "1 of 2, first: step 1", "1 of 2, first: step 2"]
    ways += ["2 of 2, second: step 0", "2 of 2, second: step 2"]
    assert pages[: len(ways)] == [f"running: {way}" for way in ways]
    pages.clear()
    assert main(["train", str(recipe), "--output", str(run), "--resume"]) == 0
    assert pages == [f"running: 2 of 2, second: step {step}" for step in (2, 3)]
    assert place(run / "report.html") == "done"
    assert json.loads((run / "summary.json").read_text())["report_seconds"] > 0


def test_the_page_of_a_run_that_failed_says_so(tmp_path: Path, pages: list[str]) -> None:
    recipe, run = written(tmp_path, RECIPE, SHORT_TASKS), tmp_path / "run"
    learning_rate = "stages.second.trainer.learning_rate=1e38"
    assert main(["train", str(recipe), "--output", str(run), learning_rate]) == 3
    assert pages[-1].startswith("failed: 2 of 2, second")


def test_no_page_is_drawn_of_a_failure_that_could_not_be_recorded(
    tmp_path: Path, pages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say that the run is running."""
    write, num_pages = SummaryWriter.write, list[int]()

    def refuse(writer: SummaryWriter, status: str) -> dict[str, Any]:
        if status == "failed":
            num_pages.append(len(pages))
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(writer, status)

    monkeypatch.setattr(SummaryWriter, "write", refuse)
    recipe, learning_rate = written(tmp_path, RECIPE, SHORT_TASKS), "stages.second.trainer.learning_rate=1e38"
    assert main(["train", str(recipe), "--output", str(tmp_path / "run"), learning_rate]) == 3
    assert num_pages == [len(pages)]


def test_a_page_that_cannot_be_drawn_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live_page, "write_report", lambda _: [][0])
    assert main(["train", str(written(tmp_path, RECIPE, SHORT_TASKS)), "--output", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err.count("the report could not be drawn, and the run goes on without it") == 1
