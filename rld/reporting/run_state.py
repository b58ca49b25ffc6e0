"""How far a run is: its state, its stage and step, and the time that the stage still takes at its present rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rld.reporting.history import RunHistory, StageHistory
from rld.reporting.series import duration
from rld.utils.folder_lock import gives_signs_of_life

State = Literal["running", "killed", "stopped", "failed", "done"]

_ABOUT: dict[State, str] = {
    "running": "The run is running.",
    "killed": "The run's process ended without a word: it was killed, or its machine failed. The same command with "
    "--resume continues from the last checkpoint.",
    "stopped": "The run was stopped before its end; the same command with --resume continues from there.",
    "failed": "The run ended with an error; once its cause is mended, the same command with --resume continues it.",
    "done": "",
}


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        state: `running` and `killed` differ by the signs of life beside the lock of the run's folder.
        place: Which stage it is in, how far, and what follows, as a sentence; empty once all stages are finished.
        seconds_left: Seconds that the stage's other updates take, at the mean rate of those that are logged. None: it
            makes no updates, or too few of them are logged.
    """

    state: State
    place: str
    seconds_left: float | None
    seconds: float
    """What the run has taken so far."""
    flops: float

    def __str__(self) -> str:
        return " ".join(filter(None, (_ABOUT[self.state], self.place)))


def run_state(history: RunHistory) -> RunState:
    """Return how far a run is, by the files in its folder."""
    state: State = "done"
    match history.summary.status:
        case "running":
            state = "running" if gives_signs_of_life(history.folder) else "killed"
        case "stopped" | "failed" as ended:
            state = ended
    logged = [stage.metrics[-1] for stage in history.stages if stage.metrics]
    totals = [max([getattr(history.summary, key), *(line[key] for line in logged)]) for key in ("seconds", "flops")]
    unfinished = [(number, stage) for number, stage in enumerate(history.stages, 1) if stage.result is None]
    if state == "done" or not unfinished:
        return RunState(state, "", None, *totals)
    (number, stage), *following = unfinished
    seconds = _seconds_left(stage)
    parts = [f"Stage {number} of {len(history.stages)}, `{stage.plan.name}`{_step(stage)}"]
    if seconds is not None and state == "running":
        bound = "at most about" if stage.plan.ends_early else "about"
        parts.append(
            f"{bound} {duration(seconds)} left of its updates" if seconds else "its model is scored and stored"
        )
    if following:
        names = ", ".join(f"`{later.plan.name}`" for _, later in following)
        parts.append(f"{names} follow{'s' if len(following) == 1 else ''}")
    return RunState(state, "; ".join(parts) + ".", seconds, *totals)


def _step(stage: StageHistory) -> str:
    if not stage.plan.steps:
        return f" ({stage.plan.kind})"
    return f": step {stage.last_step} of {stage.plan.steps}"


def _seconds_left(stage: StageHistory) -> float | None:
    if not stage.plan.steps or len(stage.metrics) < 2:
        return None
    first, last = stage.metrics[0], stage.metrics[-1]
    num_updates = last["step"] - first["step"]
    if num_updates <= 0:
        return None
    rate = max(last["seconds"] - first["seconds"], 0.0) / num_updates
    return float(rate * max(stage.plan.steps - last["step"], 0))
