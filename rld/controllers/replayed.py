"""The weights of an earlier run, replayed: the effect of the weights without the feedback that produced them."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from rld.controllers.base import BaseController, State
from rld.controllers.observation import Observation, Weights
from rld.errors import ControllerError
from rld.types import Event, Signal
from rld.utils import files
from rld.utils.run_folder import RunFolder


class ReplayedController(BaseController):
    """The weights, teachers' shares and shares of the prompts that another run logged at the same updates.

    A control for adaptive controllers: with the weights of a run of another seed, this student's own progress has no
    effect on them. The signals' gradients are balanced by this student's measurements, as with all controllers.
    """

    kind: Literal["replayed"] = "replayed"
    run_folder: str
    """Folder of a finished run with the same skills, teachers, signals and `decide_every`, which logged each update;
    relative to the folder in which rld starts. After its last update its last weights stay."""
    stage: str
    """The stage of that run."""

    @model_validator(mode="after")
    def _has_logged_weights(self) -> ReplayedController:
        _logged_weights(self.run_folder, self.stage)
        return self

    def start(self, skills: list[str], teachers: list[str], signals: list[Signal]) -> State:
        """Return the state before the first tick.

        Raises:
            ControllerError: a skill, teacher or signal is not in the log of the run.
        """
        first = _logged_weights(self.run_folder, self.stage)[0]
        names = [f"weight/{signal}/{skill}" for signal in signals for skill in skills]
        names += [f"teacher/{teacher}/weight/{skill}" for teacher in teachers for skill in skills]
        missing = [name for name in names if name not in first]
        if missing:
            raise ControllerError(
                f"controller.run_folder: {missing[0]!r} is not in the log of stage {self.stage!r}, {self.run_folder}"
            )
        return super().start(skills, teachers, signals) | {"step": 0}

    def weights(self, state: State) -> Weights:
        updates = _logged_weights(self.run_folder, self.stage)
        number = bisect_right(updates, state["step"] + 1, key=lambda update: update["step"])
        logged = updates[max(number - 1, 0)]
        skills, teachers = state["skills"], state["teachers"]
        return Weights(
            {skill: {signal: logged[f"weight/{signal}/{skill}"] for signal in state["signals"]} for skill in skills},
            {skill: {name: logged.get(f"teacher/{name}/weight/{skill}", 0.0) for name in teachers} for skill in skills},
            self._scale(state),
            {skill: logged[f"share/{skill}"] for skill in skills} if f"share/{skills[0]}" in logged else None,
        )

    def step(self, state: State, observation: Observation) -> tuple[State, Weights, list[Event]]:
        state = self._counted(state, observation) | {"step": observation.step}
        return state, self.weights(state), []


@lru_cache(maxsize=1)
def _logged_weights(run_folder: str, stage: str) -> list[dict[str, Any]]:
    """Return what a run logged at the updates of a stage, in their order."""
    lines = files.read_jsonl(RunFolder(Path(run_folder)).metrics).records
    if not lines:
        raise ValueError(f"there is no run in {run_folder}, or it has logged nothing")
    stages = list(dict.fromkeys(line.get("stage") for line in lines))
    updates = [line for line in lines if line.get("stage") == stage]
    if not updates:
        raise ValueError(f"{run_folder} has no stage {stage!r}; it has {', '.join(map(str, stages))}")
    return updates
