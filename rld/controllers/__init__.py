"""Controllers: measurements in, weights out, plain numbers on both sides. No tensor, no model, no file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rld.controllers.baselines import FixedController, RandomController, ScheduleController, SequentialController
from rld.controllers.gap import GapController
from rld.controllers.gradient import GradientAlignmentController, GradientNoiseController
from rld.controllers.replayed import ReplayedController


def _of_kind(given: Any) -> Any:
    """A kind alone is that controller with its defaults."""
    return {"kind": given} if isinstance(given, str) else given


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
