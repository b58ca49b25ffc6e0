"""What finished stages have cost: energy and money, and the price of a point that they gained."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean

from rld.recipe.prices import MACHINE_TIME, Prices
from rld.reporting.break_even import StageSpending
from rld.reporting.history import RunHistory, StageResult
from rld.reporting.html import scrolling, table
from rld.reporting.series import number
from rld.utils.run_folder import RunFolder


def stage_spending(result: StageResult, teachers: Sequence[str]) -> StageSpending:
    """Return what a finished stage took, with the names of its teachers."""
    gain = 100 * (fmean(result.after.values()) - fmean(result.before.values())) if result.before else None
    tokens = 0.0 if result.teacher_tokens is None else result.teacher_tokens.scored
    return StageSpending(result.name, result.seconds, gain, list(teachers), tokens, result.watts)


def energy_note(stages: Sequence[StageSpending], prices: Prices) -> str:
    """Return where the energy of stages comes from; empty where it is part of the price of the machine."""
    stated = f"{number(prices.watts)} W, which the prices state" if prices.watts else ""
    if all(stage.watts is None for stage in stages):
        return f"Energy is not measured: it is that of {stated}." if stated else ""
    rest = f"; of stages without that: {stated}" if stated and any(stage.watts is None for stage in stages) else ""
    return f"Energy is what the GPUs counted themselves, without the rest of the machine{rest}."


def spending_html(history: RunHistory) -> str:
    """Return the table of what each finished stage of a run cost; empty before one is finished.

    A point is one of 100 of the mean score. What a point cost is shared among what the stage's FLOPs were spent on.
    """
    teachers = {stage.plan.name: stage.plan.teacher_names for stage in history.stages}
    results = history.summary.stages
    if not results:
        return ""
    prices = MACHINE_TIME if history.plan.prices is None else history.plan.prices
    stages = [stage_spending(result, teachers.get(result.name, [])) for result in results]
    rows = [_row(result, stage, prices) for result, stage in zip(results, stages, strict=True)]
    heads = [("stage", "left"), ("kWh", ""), (escape(prices.currency), ""), ("points gained", "")]
    heads += [(f"{escape(prices.currency)} a point", ""), ("of which, by FLOPs", "left")]
    notes = [escape(energy_note(stages, prices))]
    if history.plan.prices is None:
        notes.append("These are hours of the machine; with prices in the recipe they are money.")
    if RunFolder(history.folder).cost.is_file():
        notes.append('<a href="cost.html">When the student has paid for itself</a>')
    note = f'<p class="note">{" ".join(filter(None, notes))}</p>'
    return f"<h2>What it cost</h2>{scrolling(table(heads, rows))}{note}"


def _row(result: StageResult, stage: StageSpending, prices: Prices) -> list[str]:
    energy, per_point = stage.kilowatt_hours(prices), stage.cost_per_point(prices)
    gain = "-" if stage.gain is None else f"{stage.gain:+.1f}"
    cells = [escape(stage.name), number(energy) if energy else "-", number(stage.cost(prices)), gain]
    if per_point is None:
        return [*cells, "-", "-"]
    total = sum(result.flops_by_account.values())
    parts = [
        f"{escape(account)} {number(per_point * flops / total)}"
        for account, flops in result.flops_by_account.items()
        if flops
    ]
    return [*cells, number(per_point), ", ".join(parts) or "-"]
