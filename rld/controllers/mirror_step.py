"""Weights that move by capped mirror steps, and are switched off where they are worth little for long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel

from rld.controllers.base import clip, normalised

MIN_ODDS = 0.01
"""Odds, on the scale of worth in [0, 1], that are added for all that is on: a weight of 0 could never grow again."""

RETURN_WEIGHT = 0.05
"""Share with which a signal or teacher comes back at least: from its last weight it could take many ticks to matter."""

TICKS_TO_RETURN = 2
"""Consecutive ticks of worth above the threshold that switch something on: one could be chance."""

ON_TO_OFF = 3
"""Worth above which something is switched on, relative to that below which it is switched off."""


class WeightState(BaseModel, frozen=True, extra="forbid"):
    """The weight of one signal or teacher."""

    log_weight: float
    is_on: bool
    """Whether it takes part; while it does not, its weight is 0 and `log_weight` the last one."""
    ticks: int = 0
    """Consecutive ticks in which its worth spoke for switching it the other way."""


class SwitchRule(NamedTuple):
    """When a signal or teacher is switched: after `patience_ticks` ticks of worth below `off_below`, or two above
    `on_above`, which is three times that."""

    off_below: float
    patience_ticks: int

    @property
    def on_above(self) -> float:
        return ON_TO_OFF * self.off_below


class Switch(NamedTuple):
    """A signal or teacher that was switched on or off, and the rule by which it was."""

    name: str
    is_on: bool
    rule: str


def weight_states(shares: Mapping[str, float]) -> dict[str, WeightState]:
    """Return the states that stand for `shares`; those of share 0 are off."""
    return {name: WeightState(log_weight=math.log(w) if w else 0.0, is_on=w > 0) for name, w in shares.items()}


def shares_of(weights: Mapping[str, WeightState]) -> dict[str, float]:
    """Return the shares that weights stand for: they sum to 1, or are all 0."""
    return normalised({name: math.exp(weight.log_weight) if weight.is_on else 0.0 for name, weight in weights.items()})


def sum_to_one(weights: Mapping[str, WeightState]) -> dict[str, WeightState]:
    """Return the weights, normalised so that those that are on sum to 1."""
    active = [weight for weight in weights.values() if weight.is_on]
    total = math.log(sum(math.exp(weight.log_weight) for weight in active)) if active else 0.0
    return {
        name: weight.model_copy(update={"log_weight": weight.log_weight - total}) if weight.is_on else weight
        for name, weight in weights.items()
    }


def switch(
    weights: Mapping[str, WeightState], worth: Mapping[str, float], rule: SwitchRule, never_off: str = ""
) -> tuple[dict[str, WeightState], list[Switch]]:
    """Return the weights after switching, and what was switched.

    Args:
        weights: By name, of signals or of teachers.
        worth: In [0, 1], by the same names.
        rule: When to switch.
        never_off: The name that stays on whatever it is worth.
    """
    switched, switches = {}, []
    for name, weight in weights.items():
        beyond = worth[name] < rule.off_below if weight.is_on else worth[name] > rule.on_above
        ticks = weight.ticks + 1 if beyond else 0
        if weight.is_on and ticks >= rule.patience_ticks and name != never_off:
            switched[name] = WeightState(log_weight=weight.log_weight, is_on=False)
            switches.append(Switch(name, False, f"below {rule.off_below:g} for {rule.patience_ticks} ticks"))
        elif not weight.is_on and (ticks >= TICKS_TO_RETURN or name == never_off):
            switched[name] = WeightState(log_weight=max(weight.log_weight, math.log(RETURN_WEIGHT)), is_on=True)
            reason = "never off" if name == never_off else f"above {rule.on_above:g} for {TICKS_TO_RETURN} ticks"
            switches.append(Switch(name, True, reason))
        else:
            switched[name] = weight.model_copy(update={"ticks": ticks})
    return switched, switches


def mirror_step(
    weights: Mapping[str, WeightState],
    worth: Mapping[str, float],
    odds: Mapping[str, float],
    *,
    step_size: float,
    max_log_step: float,
) -> dict[str, WeightState]:
    """Return the weights after one step towards `odds * worth`, in log space, normalised to a sum of 1.

    Args:
        weights: By name; those that are off stay as they are.
        worth: In [0, 1], by the same names.
        odds: Relative weight of what is worth 1; 1 for what is not named.
        step_size: Share of the way to the target.
        max_log_step: The most that the logarithm of a weight changes by, before normalisation.
    """
    active = [name for name, weight in weights.items() if weight.is_on]
    targets = normalised({name: odds.get(name, 1.0) * clip(worth[name], 0, 1) + MIN_ODDS for name in active})
    moved = dict(weights)
    for name in active:
        before = weights[name].log_weight
        step = clip(step_size * (math.log(targets[name]) - before), -max_log_step, max_log_step)
        moved[name] = weights[name].model_copy(update={"log_weight": before + step})
    return sum_to_one(moved)
