"""How strongly a student is held to its state at the start of a stage, so that it does not forget: without tensors.

Now and then the student answers a few probe prompts of each protected skill. Where fewer answers are correct than
allowed, the weight λ of the divergence from the student at the start of the stage rises by a proportional and an
integral term (a PI-Lagrangian; Stooke et al. 2020, Sohrabi et al. 2024); where enough are correct it decays. It works
beside any controller: λ is added to the weights that sum to 1.

With a budget for that divergence itself there is one more weight, which follows the ratio of divergence and budget (the
adaptive KL coefficient of Ziegler et al. 2019, equation 4, with a gain of 1 per probe).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field, field_validator

from rld.controllers.base import State, clip
from rld.types import Event
from rld.utils.options import FrozenOptions

VERSION = 3
"""Of the format of the state."""

PROPORTIONAL_GAIN = 3.0
"""Change of λ per change of the violation."""

INTEGRAL_GAIN = 1.0
"""Change of λ per probe, for a violation of 1."""

MAX_VIOLATION = 0.2
"""The most that one probe's violation counts, as a difference of success rates: few prompts are noisy."""

MAX_WEIGHT = 10.0
"""Upper bound of λ: above it the divergence would dominate every other loss."""

MIN_WEIGHT = 0.01
"""λ is 0 below this, which saves the replay; the budget's weight has it as lower bound."""

START_WEIGHT = 2.0
"""λ before the first probe. A skill that is not practised is lost within a few updates, before a probe can show it."""

DECAY = 0.05
"""Share of λ that is lost at a probe without a violation."""

EARLY_TICKS = 20
"""Ticks in which probes are frequent: most is forgotten early."""

EARLY_INTERVAL = 2
"""Ticks between two probes up to `EARLY_TICKS`."""

LATE_INTERVAL = 5
"""Ticks between two probes after `EARLY_TICKS`."""

MAX_BUDGET_STEP = 0.2
"""The most by which the budget's weight changes at a probe, as a share of it."""

BUDGET_KEPT_BELOW = 0.8
"""Share of the budget below which it counts as kept again, so that events do not alternate."""

AT_LIMIT = 0.99
"""Share of `MAX_WEIGHT` from which λ counts as at its limit."""

PROBES_AT_LIMIT = 5
"""Consecutive probes with λ at its limit that show that it can't hold the skill."""

Counts = tuple[int, int]
"""Correct answers, and prompts."""


class RetentionRule(FrozenOptions):
    """Hold a student to what it could do at the start of a stage, on skills that it must not forget.

    Prompts of the protected skills are replayed: the loss gets `λ KL(π₀ || π)`, the mean over the tokens of completions
    that the student sampled at the start. λ starts at 2, as a precaution, and decays where nothing is being lost.
    """

    skills: list[str] | None = None
    """Skills to protect, trained ones or others. None: all that are not trained."""
    drop: float = Field(0.03, ge=0, lt=1)
    """How far the success rate may fall below that at the start."""
    probe_prompts: int = Field(32, gt=0, le=100_000)
    """Prompts per skill that are answered greedily to measure it."""
    prompts: int = Field(256, gt=0, le=100_000)
    """Prompts per skill that are replayed in turn. A student memorises a few, and forgets the skill all the same."""
    batch: int = Field(32, gt=0, le=100_000)
    """Of these, how many an update replays while λ is above 0."""
    budget: float | None = Field(None, gt=0)
    """Divergence, in nats per token, that the student may have from its start, in the mean over the replayed
    completions. None: as much as leaves the answers correct."""

    @field_validator("skills")
    @classmethod
    def _named_once(cls, skills: list[str] | None) -> list[str] | None:
        repeated = [skill for skill in skills or () if (skills or []).count(skill) > 1]
        if repeated:
            raise ValueError(f"names {repeated[0]!r} twice")
        return skills

    def start(self, baseline: Mapping[str, Counts]) -> State:
        """Return the state at the start of a stage, from the probes of the protected skills."""
        entry = {"weight": START_WEIGHT, "last_violation": 0.0, "probes_at_limit": 0, "is_violated": False}
        skills = {skill: entry | {"baseline": correct / size} for skill, (correct, size) in baseline.items()}
        budget = {"weight": MIN_WEIGHT, "is_exceeded": False}
        return {"version": VERSION, "tick": 0, "skills": skills, "budget": budget}

    def weights(self, state: State) -> dict[str, float]:
        """Return λ per protected skill, in [0, 10]; above 0 with a budget, since replays measure the divergence."""
        minimum = 0.0 if self.budget is None else state["budget"]["weight"]
        return {skill: max(entry["weight"], minimum) for skill, entry in state["skills"].items()}

    def tick(self, state: State) -> tuple[State, bool]:
        """Return the state one tick later, and whether the skills are to be probed now."""
        tick = state["tick"] + 1
        return {**state, "tick": tick}, tick % (EARLY_INTERVAL if tick <= EARLY_TICKS else LATE_INTERVAL) == 0

    def step(
        self, state: State, probes: Mapping[str, Counts], step: int, drift: float | None = None
    ) -> tuple[State, list[Event]]:
        """Return the state after a probe, and its events.

        Args:
            state: Before it.
            probes: What was counted, by skill.
            step: The optimiser step.
            drift: Mean divergence over the tokens replayed since the last probe, in nats; None: none were replayed.
        """
        skills, events = dict(state["skills"]), []
        for skill, (correct, size) in probes.items():
            skills[skill], changes = self._step_skill(skills[skill], correct, size)
            entry = skills[skill]
            reason = (
                f"{correct} of {size} probe prompts answered correctly, {entry['baseline']:.0%} at the start; "
                f"weight {entry['weight']:.2f}"
            )
            events += [Event(step, kind, skill, "reference", reason, rule) for kind, rule in changes]
        state = {**state, "skills": skills}
        if self.budget is not None and drift is not None:
            state["budget"], changes = self._step_budget(state["budget"], self.budget, drift)
            reason = f"divergence from the start {drift:.3g} nats per token; weight {state['budget']['weight']:.2f}"
            events += [Event(step, kind, "all skills", "reference", reason, rule) for kind, rule in changes]
        return state, events

    def _step_budget(self, entry: State, budget: float, drift: float) -> tuple[State, list[tuple[str, str]]]:
        """Return a budget's state after a probe, and the kind and rule of an event if it is exceeded or kept again."""
        change = clip(drift / budget - 1, -MAX_BUDGET_STEP, MAX_BUDGET_STEP)
        weight = clip(entry["weight"] * (1 + change), MIN_WEIGHT, MAX_WEIGHT)
        exceeded = drift > (BUDGET_KEPT_BELOW if entry["is_exceeded"] else 1.0) * budget
        kind = f"budget {'exceeded' if exceeded else 'kept'}"
        changes = [(kind, f"budget {budget:g}")] if exceeded != entry["is_exceeded"] else []
        return {"weight": weight, "is_exceeded": exceeded}, changes

    def _step_skill(self, entry: State, correct: int, size: int) -> tuple[State, list[tuple[str, str]]]:
        """Return a skill's state after a probe, and the kinds and rules of events."""
        shortfall = entry["baseline"] - self.drop - correct / size
        smoothed = (correct + 1) / (size + 2)  # of few prompts, all correct has an error too
        error = math.sqrt(smoothed * (1 - smoothed) / (size + 2))
        violation = clip(shortfall, -MAX_VIOLATION, MAX_VIOLATION) if abs(shortfall) > error else 0.0
        # Only violations are in the proportional term: a success rate that falls, but stays allowed, raises nothing.
        positive = max(violation, 0.0)
        decay = 1 - DECAY if shortfall <= 0 else 1.0
        # The bounds are inside the recursion, so that the integral does not wind up behind them.
        change = INTEGRAL_GAIN * violation + PROPORTIONAL_GAIN * (positive - entry["last_violation"])
        weight = clip(decay * entry["weight"] + change, 0, MAX_WEIGHT)
        weight = weight if weight >= MIN_WEIGHT else 0.0
        at_limit = entry["probes_at_limit"] + 1 if weight >= AT_LIMIT * MAX_WEIGHT else 0
        is_violated, changes = entry["is_violated"], []
        if violation > 0 and not is_violated:
            is_violated = True
            changes.append(("retention on", f"more than {self.drop:g} and a standard error below the start"))
        if entry["weight"] and not weight:
            is_violated = False
            changes.append(("retention off", f"weight below {MIN_WEIGHT:g}"))
        if at_limit == PROBES_AT_LIMIT:
            rule = f"weight at its limit of {MAX_WEIGHT:g} for {PROBES_AT_LIMIT} probes"
            changes.append(("retention infeasible", rule))
        moved = {"weight": weight, "last_violation": positive, "probes_at_limit": at_limit, "is_violated": is_violated}
        return entry | moved, changes
