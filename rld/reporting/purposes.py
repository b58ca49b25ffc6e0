"""What the operations of a finished stage were for: which teacher, which signals, and what that cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rld.recipe.prices import Prices
from rld.reporting.break_even import StageSpending
from rld.reporting.history import PlannedStage
from rld.reporting.series import number
from rld.reporting.summary_records import StageResult
from rld.types import SIGNALS

_OF_TEACHERS = ("teachers", "gate", "answers")
"""The accounts of operations whose parts are teachers."""

_OF_STUDENT = {
    "gold": ("gold answers beside completions", "gold"),
    "probes": ("measurements on rows", "the controller"),
    "cut": ("rows by which a model is cut", "prune"),
}
"""What parts of the student's account are for, and what needs them; updates are for completions or rows."""

HEADS = ("spent on", "needed by", "FLOPs", "share", "prompts taught")
"""The heads of a table of purposes, before those of money."""

ABOUT = (
    "A stage would not have spent a row without the signals that need it; without one of two it would have spent the "
    "row all the same. What the machine costs is shared by FLOPs, and an API has a price of its own. How many points a "
    "signal or a teacher gained takes a run without it, as rld ablate makes."
)
"""What a table of purposes says, in sentences."""


class Purpose(NamedTuple):
    """One purpose of a stage's operations."""

    name: str
    """The teacher, or what the student did."""
    needed_by: str
    """The signals without which none of it would have been spent."""
    flops: float
    """Its operations; 0 where those of a teacher on a server are not known."""
    teacher: str | None = None


def purposes(result: StageResult, plan: PlannedStage) -> list[Purpose]:
    """Return what a finished stage's operations were for, teachers first; their FLOPs sum to the stage's.

    There are none of a stage whose record has no parts, as where it computed nothing.
    """
    if not result.flops_by_part:
        return []
    return [*_teachers(result, plan), *_others(result, plan)]


def cells(purpose: Purpose, result: StageResult) -> list[str]:
    """Return a purpose as cells under `HEADS`."""
    total = sum(result.flops_by_account.values())
    teaching = None if purpose.teacher is None else result.teaching.get(purpose.teacher)
    flops_cells = (number(purpose.flops), f"{purpose.flops / total:.1%}") if purpose.flops else ("-", "-")
    return [purpose.name, purpose.needed_by, *flops_cells, str(teaching.prompts) if teaching else "-"]


def money(purpose: Purpose, result: StageResult, spending: StageSpending, prices: Prices) -> list[str]:
    """Return the cost of a purpose and its cost for each point that the stage gained, as cells.

    The costs of all purposes sum to the stage's. An API's operations are done elsewhere, and have no share of what the
    machine costs.
    """
    if purpose.teacher is not None and purpose.teacher in prices.apis:
        cost = spending.api_cost(purpose.teacher, prices)
    else:
        of_apis = sum(flops for name, flops in _flops_by_teacher(result).items() if name in prices.apis)
        of_machine = sum(result.flops_by_account.values()) - of_apis
        cost = spending.machine_cost(prices) * purpose.flops / of_machine if of_machine else 0.0
    gain = spending.gain or 0.0
    return [number(cost), number(cost / gain) if gain > 0 else "-"]


def _teachers(result: StageResult, plan: PlannedStage) -> Iterator[Purpose]:
    signals = [name for name in ("response", "feature") if plan.signals.get(name) is not None]
    if (plan.signals.get("policy") or {}).get("teacher_reward"):
        signals.insert(0, "policy")
    gold = plan.signals.get("gold")
    if isinstance(gold, dict) and gold.get("answers") == "teachers":
        signals.append("gold")
    flops_by_teacher = dict.fromkeys(result.teaching, 0.0) | _flops_by_teacher(result)
    for name, flops in flops_by_teacher.items():
        yield Purpose(f"teacher {name}", ", ".join(signals) or plan.kind, flops, name)


def _flops_by_teacher(result: StageResult) -> dict[str, float]:
    """Return the operations of each teacher whose operations are known, over all accounts."""
    sums: dict[str, float] = {}
    for account in _OF_TEACHERS:
        for name, flops in result.flops_by_part.get(account, {}).items():
            sums[name] = sums.get(name, 0.0) + flops
    return sums


def _others(result: StageResult, plan: PlannedStage) -> Iterator[Purpose]:
    parts = result.flops_by_part.get("student", {})
    signals = [name for name in SIGNALS if plan.signals.get(name) is not None]
    what = "completions, and updates on them" if plan.kind == "distill" else "updates on rows"
    flops = result.flops_by_account.get("generation", 0.0) + parts.get("updates", 0.0)
    others = [Purpose(what, ", ".join(signals) or plan.kind, flops)]
    others += [Purpose(*_OF_STUDENT[part], parts.get(part, 0.0)) for part in _OF_STUDENT]
    others.append(Purpose("protected skills", "retain", result.flops_by_account.get("retention", 0.0)))
    yield from (purpose for purpose in others if purpose.flops)
