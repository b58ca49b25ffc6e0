"""What finished stages have cost: energy and money, what for, and the price of a point that they gained."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import fmean

from rld.recipe.prices import MACHINE_TIME, Prices
from rld.reporting.break_even import StageSpending
from rld.reporting.history import RunHistory
from rld.reporting.html import scrolling, table
from rld.reporting.purposes import ABOUT, HEADS, cells, money, purposes
from rld.reporting.series import number
from rld.reporting.summary_records import StageResult
from rld.utils.run_folder import RunFolder


def stage_spending(result: StageResult) -> StageSpending:
    """Return what a finished stage took."""
    gain = 100 * (fmean(result.after.values()) - fmean(result.before.values())) if result.before else None
    tokens = {name: teaching.tokens for name, teaching in result.teaching.items()}
    return StageSpending(result.name, result.seconds, gain, tokens, result.watts)


def energy_note(stages: Sequence[StageSpending], prices: Prices) -> str:
    """Return where the energy of stages comes from; empty where it is part of the price of the machine."""
    stated = f"{number(prices.watts)} W, which the prices state" if prices.watts else ""
    if all(stage.watts is None for stage in stages):
        return f"Energy is not measured: it is that of {stated}." if stated else ""
    rest = f"; of stages without that: {stated}" if stated and any(stage.watts is None for stage in stages) else ""
    return f"Energy is what the GPUs counted themselves, without the rest of the machine{rest}."


def spending_html(history: RunHistory) -> str:
    """Return the tables of what each finished stage of a run cost and for what; empty before one is finished.

    A point is one of 100 of the mean score.
    """
    results = history.summary.stages
    if not results:
        return ""
    prices = MACHINE_TIME if history.plan.prices is None else history.plan.prices
    stages, currency = list(map(stage_spending, results)), escape(prices.currency)
    heads = [("stage", "left"), ("kWh", ""), (currency, ""), ("points gained", ""), (f"{currency} a point", "")]
    notes = [escape(energy_note(stages, prices))]
    if history.plan.prices is None:
        notes.append("These are hours of the machine; with prices in the recipe they are money.")
    if RunFolder(history.folder).cost.is_file():
        notes.append('<a href="cost.html">When the student has paid for itself</a>')
    costs = scrolling(table(heads, [_row(stage, prices) for stage in stages]))
    return f"<h2>What it cost</h2>{costs}{_note(notes)}{_purposes(history, prices)}"


def _row(stage: StageSpending, prices: Prices) -> list[str]:
    per_point = stage.cost_per_point(prices)
    gain = "-" if stage.gain is None else f"{stage.gain:+.1f}"
    cells = [energy(stage.kilowatt_hours(prices)), number(stage.cost(prices)), gain]
    return [escape(stage.name), *cells, "-" if per_point is None else number(per_point)]


def _purposes(history: RunHistory, prices: Prices) -> str:
    """Return the table of what the stages' operations were for, of stages with more than one purpose."""
    rows = []
    for stage in history.stages:
        if stage.result is None:
            continue
        stage_purposes, spending = purposes(stage.result, stage.plan), stage_spending(stage.result)
        for purpose in stage_purposes if len(stage_purposes) > 1 else ():
            row = [stage.plan.name, *cells(purpose, stage.result), *money(purpose, stage.result, spending, prices)]
            rows.append(list(map(escape, row)))
    if not rows:
        return ""
    heads = ["stage", *HEADS, prices.currency, f"{prices.currency} a point"]
    text_heads = ("stage", "spent on", "needed by")
    purpose_table = table([(escape(head), "left" if head in text_heads else "") for head in heads], rows)
    return f"<h3>What that was spent on</h3>{scrolling(purpose_table)}{_note([escape(ABOUT)])}"


def _note(sentences: Sequence[str]) -> str:
    return f'<p class="note">{" ".join(filter(None, sentences))}</p>'


def energy(kilowatt_hours: float) -> str:
    """Return an energy as a short text; a dash where there is none."""
    return number(kilowatt_hours) if kilowatt_hours else "-"
