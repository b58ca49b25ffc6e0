"""Controllers: measurements in, weights out, plain numbers on both sides; `runtime` alone connects them to tensors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rld.controllers.baselines import FixedController, RandomController, ScheduleController, SequentialController
from rld.controllers.gap import GapController
from rld.controllers.gradient import GradientAlignmentController, GradientNoiseController
from rld.controllers.replayed import ReplayedController


def _of_kind(value: Any) -> Any:
    """Return the options of a controller; a kind alone stands for its defaults."""
    return {"kind": value} if isinstance(value, str) else value


AnyController = Annotated[
    FixedController
    | ScheduleController
    | SequentialController
    | GapController
    | GradientNoiseController
    | GradientAlignmentController
    | RandomController
    | ReplayedController,
    Field(discriminator="kind"),
    BeforeValidator(_of_kind),
]
