"""Writes the log of a stage: `metrics.jsonl`, one object per logged step, and `events.jsonl`, one per event."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rld.reporting.metric_names import logged_metrics
from rld.types import Event
from rld.utils import files
from rld.utils.messages import tell
from rld.utils.run_folder import RunFolder


class RunLog(TrainerCallback):
    """Writes a stage's metrics to `metrics.jsonl` and its events to `events.jsonl`, from the main process only.

    Each line is written at once, so a killed run loses at most the last one. A stage that is resumed at a step first
    removes its lines of later steps, so that a resumed run leaves the same files as one that was never stopped, except
    for `seconds`.

    Args:
        folder: The run's folder.
        stage: The stage's name.
        start: When the run began, by `time.monotonic`; for a resumed run, as if it had never paused.
        flops: Returns the run's floating-point operations so far.
        supervised: Whether the stage fine-tunes: then its loss is logged as `loss/sft` too.
    """

    def __init__(
        self, folder: Path, stage: str, start: float, flops: Callable[[], float], supervised: bool = False
    ) -> None:
        self.folder, self.stage, self.start, self.flops = RunFolder(folder), stage, start, flops
        self._is_supervised = supervised
        self._writes = False
        self._extra: dict[str, float] = {}
        self._present: list[files.Record] = []
        """Events of the beginning, and of the update after which the stage goes on: some are told again."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._writes = state.is_world_process_zero
        if self._writes:
            for path in (self.folder.metrics, self.folder.events):
                damaged = files.filter_jsonl(path, lambda record: self._is_kept(record, state.global_step))
                if damaged:
                    tell(f"{path}: line {', '.join(map(str, damaged))} is damaged and left out")
            events = files.read_jsonl(self.folder.events).records
            steps = 0, state.global_step
            self._present = [event for event in events if event["stage"] == self.stage and event["step"] in steps]

    def _is_kept(self, record: files.Record, num_updates: int) -> bool:
        """Tell whether a line is of another stage, or of the updates that this stage has made; a damaged one is not."""
        step = record.get("step")
        return "stage" in record and files.is_number(step) and (record["stage"] != self.stage or step <= num_updates)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        values = logged_metrics(logs or {}, self._is_supervised)
        if self._writes and values:
            seconds = round(time.monotonic() - self.start, 3)
            head = {"stage": self.stage, "step": state.global_step, "seconds": seconds, "flops": self.flops()}
            files.append_jsonl(self.folder.metrics, [head | values | self._extra])
            self._extra = {}

    def note(self, values: Mapping[str, float]) -> None:
        """Add metrics to the next line."""
        self._extra |= values

    def events(self, events: list[Event]) -> None:
        """Append events."""
        records = [asdict(event) | {"stage": self.stage} for event in events]
        records = [record for record in records if record not in self._present]
        if self._writes and records:
            files.append_jsonl(self.folder.events, records)
