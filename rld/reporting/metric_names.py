"""Which values of a trainer's log `metrics.jsonl` keeps, and under which names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_OURS = re.compile(
    r"loss|entropy|entropy_coef"
    r"|(loss|weight|scale|phase|teacher|progress|audit|retention|level|share|tokens|time)/.+"
    r"|(grad|noise|aligned|divergence|distance|sure)/.+"
)

_TRL_REWARD = re.compile(r"rewards/(.+)/mean")


def picked(logs: Mapping[str, Any], supervised: bool) -> dict[str, float | None]:
    """Return what `metrics.jsonl` keeps of a trainer's log, under its names; None stands for NaN and infinity.

    `supervised`: the loss is that of the `sft` signal. A log without a loss, such as the last one's timings, has none.
    """
    if "loss" not in logs:
        return {}
    values = {}
    for key, value in logs.items():
        if reward := _TRL_REWARD.fullmatch(key):
            values[f"reward/{reward[1]}"] = value
        elif _OURS.fullmatch(key):
            values[key] = value
    if supervised:
        values["loss/sft"] = logs["loss"]
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
