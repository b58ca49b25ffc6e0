"""What the log of a stage has once the stage was resumed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rld.reporting.run_log import RunLog
from rld.types import Event
from rld.utils.files import read_jsonl

AT_THE_START = Event(0, "gold answers off", "copy", "gold", "its rows are documents")
LATER = Event(5, "teacher off", "copy", "one", "it is wrong")


def test_an_event_of_the_beginning_is_not_told_again_when_a_stage_is_resumed(tmp_path):
    for step, events in ((0, [AT_THE_START]), (2, [AT_THE_START, LATER])):
        log = RunLog(tmp_path, "learn", 0.0, lambda: 0.0)
        state: Any = SimpleNamespace(is_world_process_zero=True, global_step=step)
        log.on_train_begin(state, state, state)
        log.events(events)
    kinds = [event["kind"] for event in read_jsonl(tmp_path / "events.jsonl").records]
    assert kinds == ["gold answers off", "teacher off"]
