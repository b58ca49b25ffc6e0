"""The weights of another run, replayed: what a course is worth by itself, when nothing it reacts to is measured."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from rld.controllers.base import BaseController, State
from rld.controllers.observation import Observation, Weights
from rld.errors import CheckpointError, ControllerError
from rld.types import Event, Signal
from rld.utils import files
from rld.utils.run_folder import RunFolder


class ReplayedController(BaseController):
    """Weights, teachers' shares and shares of the prompts as another run had them at the same updates.

    The control for an adaptive controller: yoked to a run of it with another seed, it gives a student the same course
    without listening to this student. The signals' magnitudes are this student's, as with all controllers.
    """

    kind: Literal["yoked"] = "yoked"
    run: str
    """Folder of a finished run with the same skills, teachers, signals and `every`, which logged each update; seen from
    where rld starts. After its last update its last weights stay."""
    stage: str
    """Which of its stages."""

    @model_validator(mode="after")
    def _has_a_course(self) -> ReplayedController:
        _logged_weights(self.run, self.stage)
        return self

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        """Return the state before the first tick.

        Raises:
            ControllerError: a skill, teacher or signal is not in the log of the run.
        """
        first = _logged_weights(self.run, self.stage)[0]
        wanted = [f"weight/{signal}/{skill}" for signal in signals for skill in skills]
        wanted += [f"teacher/{teacher}/weight/{skill}" for teacher in teachers for skill in skills]
        missing = [name for name in wanted if name not in first]
        if missing:
            raise ControllerError(
                f"controller.run: {missing[0]!r} is not in the log of stage {self.stage!r}, {self.run}"
            )
        return super().start(skills, teachers, signals) | {"step": 0}

    def weights(self, state: State) -> Weights:
        course = _logged_weights(self.run, self.stage)
        then = course[max(bisect_right(course, state["step"] + 1, key=lambda line: line["step"]) - 1, 0)]
        skills, teachers = state["skills"], state["teachers"]
        return Weights(
            {skill: {signal: then[f"weight/{signal}/{skill}"] for signal in state["signals"]} for skill in skills},
            {skill: {name: then.get(f"teacher/{name}/weight/{skill}", 0.0) for name in teachers} for skill in skills},
            self._scale(state),
            {skill: then[f"share/{skill}"] for skill in skills} if f"share/{skills[0]}" in then else None,
        )

    def step(self, state: State, seen: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, seen) | {"step": seen.step}
        return state, self.weights(state), []


@lru_cache(maxsize=1)
def _logged_weights(run: str, stage: str) -> list[dict[str, Any]]:
    """What a run logged at the updates of a stage, in their order."""
    try:
        lines, _ = files.read_jsonl(RunFolder(Path(run)).metrics)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    if not lines:
        raise ValueError(f"there is no run in {run}, or it has logged nothing")
    stages = list(dict.fromkeys(line.get("stage") for line in lines))
    course = [line for line in lines if line.get("stage") == stage]
    if not course:
        raise ValueError(f"{run} has no stage {stage!r}; it has {', '.join(map(str, stages))}")
    return course
