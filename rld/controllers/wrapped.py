"""What controllers around another controller share: they see what it sees, and change what it decides."""

from __future__ import annotations

from dataclasses import dataclass

from rld.controllers.observation import Controller, RequiredMeasurements


@dataclass(frozen=True)
class WrappedController:
    """A controller that lets another one decide first.

    Its state is the other's with keys of its own beside, so that a checkpoint has both.

    Attributes:
        controller: The other one.
    """

    controller: Controller

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
