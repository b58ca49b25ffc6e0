"""Where the time of an update goes, and how the report says it."""

from __future__ import annotations

import pytest

from rld.reporting.history import PlannedStage, StageHistory
from rld.trainer import timing
from rld.trainer.timing import PhaseTimer, timed


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_a_part_within_a_part_counts_for_itself_alone(clock):
    class Trainer:
        timer = PhaseTimer()

        @timed("outer")
        def outer(self, seconds: float) -> float:
            clock[0] += seconds
            self.inner()
            self.inner()
            return seconds

        @timed("inner")
        def inner(self) -> None:
            clock[0] += 0.5

    trainer = Trainer()
    assert trainer.outer(2.0) == 2.0
    assert trainer.timer.take() == {"time/outer": 2.0, "time/inner": 1.0}
    trainer.inner()
    assert trainer.timer.take() == {"time/outer": 0.0, "time/inner": 0.5}  # or means over updates would be wrong


def test_the_report_shares_out_the_time_between_the_first_logged_update_and_the_last():
    plan = PlannedStage.model_validate({"name": "s", "kind": "distill", "steps": 5})
    lines = [
        {"step": 1, "seconds": 100.0, "time/student": 90.0},  # warming up, and not in what follows
        {"step": 3, "seconds": 104.0, "time/student": 1.0, "time/generation": 0.5},  # means over two updates
        {"step": 4, "seconds": 110.0, "time/student": 1.0, "time/generation": 4.0},
    ]
    shares = StageHistory(plan, lines, [], None).time_shares()
    assert shares == {"generation": 0.5, "student": pytest.approx(0.3), "rest": pytest.approx(0.2)}
    assert list(shares) == ["generation", "student", "rest"]
    assert StageHistory(plan, lines[:1], [], None).time_shares() == {}
