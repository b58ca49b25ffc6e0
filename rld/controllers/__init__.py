"""Controllers: measurements in, weights out, plain numbers on both sides. No tensor, no model, no file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rld.controllers.baselines import Fixed, Random, Schedule, Sequential
from rld.controllers.gap import Gap
from rld.controllers.gradient import Noise, Probe
from rld.controllers.replayed import Yoked


def _of_kind(given: Any) -> Any:
    """A kind alone is that controller with its defaults."""
    return {"kind": given} if isinstance(given, str) else given


AnyController = Annotated[
    Fixed | Schedule | Sequential | Gap | Noise | Probe | Random | Yoked,
    Field(discriminator="kind"),
    BeforeValidator(_of_kind),
]
