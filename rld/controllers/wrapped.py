"""What controllers around another controller share: they see what it sees, and change what it decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rld.controllers.base import State
from rld.controllers.observation import Controller, RequiredMeasurements


@dataclass(frozen=True)
class WrappedController:
    """A controller that lets another one decide first.

    Its state is the other's with one key of its own beside, so that a checkpoint has both.

    Attributes:
        controller: The other one.
    """

    STATE_KEY: ClassVar[str]
    """The key of its own, which no other controller has."""

    controller: Controller

    def resume(self, state: State, teachers: list[str]) -> State:
        """Return a saved state for other teachers, with its own part as it was."""
        return {**self.controller.resume(self._inner(state), teachers), self.STATE_KEY: state[self.STATE_KEY]}

    def _inner(self, state: State) -> State:
        """Return the other controller's state."""
        return {key: value for key, value in state.items() if key != self.STATE_KEY}

    @property
    def kind(self) -> str:
        return self.controller.kind

    @property
    def decide_every(self) -> int:
        return self.controller.decide_every

    @property
    def recheck_every(self) -> int:
        return self.controller.recheck_every

    @property
    def required_measurements(self) -> RequiredMeasurements:
        """What the other controller requires."""
        return self.controller.required_measurements
