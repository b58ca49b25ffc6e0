"""An ablation as tables for the terminal and as one page: how far each arm came, at what cost, and how surely."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path
from typing import TypeAlias

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rld.ablation.outcomes import NEAR, AblationResult, ArmSummary, PairedDifference, Spread
from rld.ablation.statistics import mean_curve
from rld.reporting.chart_groups import NUM_COLOURS
from rld.reporting.charts import Chart, Line, figure
from rld.reporting.html import grid, page
from rld.reporting.series import number
from rld.utils.files import write_text
from rld.utils.run_folder import RunFolder

Cells: TypeAlias = tuple[list[str], list[list[str]]]
"""The heads of a table's columns, and its rows."""

_ABOUT_SCORES = (
    "Greedy answers on held-out rows, means over skills, ± standard deviation over seeds: at the end, when {even} "
    "FLOPs are spent (what every run has spent), and on average until then, from where all have begun."
)

_ABOUT_COST = (
    "FLOPs count sampling, teachers, gate, probes and training, not the scoring; stages that all arms share are "
    "charged to none. To {near}, {share:.0%} of the best arm's final score: the median, and how many seeds got there."
)

_ABOUT_DIFFERENCES = (
    "Paired by seed. Bootstrap intervals over seeds, each for itself, not corrected for their number; with few seeds "
    "they are too narrow. p: randomisation test, corrected for the number of arms (Holm); as many seeds as here can "
    "give no less than {least:.2g} before that."
)


def tables(result: AblationResult) -> list[RenderableType]:
    """Return what the terminal shows."""
    return [part for title, cells, about in _sections(result) for part in (_table(title, cells), Text(about + "\n"))]


def write_scoreboard(result: AblationResult, folder: Path) -> Path:
    """Write `ablation.html` into `folder` and return its path."""
    parts = [f"<h1>{escape(result.recipe)}: {len(result.standings)} arms</h1>"]
    for title, cells, about in _sections(result):
        parts.append(f'<h2>{escape(title)}</h2>{_grid(cells)}<p class="note">{escape(about)}</p>')
    small = [figure(_chart(result, skill, is_small=True)) for skill in result.skills]
    parts += [
        "<h2>Held-out score against compute<small>bold: the mean over seeds; faint: each seed</small></h2>",
        f'<div class="charts">{figure(_chart(result, None))}</div>',
        f'<h3>By skill</h3><div class="charts small">{"".join(small)}</div>',
        f"<h2>Runs</h2>{_runs(result, folder)}<h2>Arms</h2>{_arms(result)}",
    ]
    path = folder / "ablation.html"
    write_text(path, page(f"{result.recipe}: rld ablate", "".join(parts)))
    return path


def _sections(result: AblationResult) -> list[tuple[str, Cells, str]]:
    """Return the tables, each with its title and what to know about it."""
    even, near = number(result.flops), f"{result.target:.3f}"
    heads = ["arm", "final", "worst skill", f"at {even}", f"mean to {even}"]
    rows = [[s.arm, *map(_spread, (s.final, s.worst, s.even, s.area))] for s in result.standings]
    scores = "Held-out score", (heads, rows), _ABOUT_SCORES.format(even=even)
    heads = ["arm", "seeds", "FLOPs", f"FLOPs to {near}", "teacher tokens"]
    cost = "Compute", (heads, [_cost(s) for s in result.standings]), _ABOUT_COST.format(near=near, share=NEAR)
    if not result.differences:
        return [scores, cost]
    heads = ["arm", "measure", "difference", "95% interval", "won", "p"]
    names = {"final": "final", "even": f"at {even}", "area": f"mean to {even}"}
    rows = [_difference(difference, names[difference.measure]) for difference in result.differences]
    least = min(2.0 ** (1 - min(difference.num_seeds for difference in result.differences)), 1.0)
    about = _ABOUT_DIFFERENCES.format(least=least)
    return [scores, cost, (f"Difference to {result.standings[0].arm}", (heads, rows), about)]


def _cost(s: ArmSummary) -> list[str]:
    near = f"{'-' if s.to_near is None else number(s.to_near)} ({s.num_near} of {s.num_seeds})"
    return [s.arm, str(s.num_seeds), number(s.flops.mean), near, number(s.num_scored)]


def _difference(d: PairedDifference, measure: str) -> list[str]:
    interval = "-" if d.interval is None else f"{d.interval[0]:+.3f} to {d.interval[1]:+.3f}"
    return [d.arm, measure, f"{d.mean:+.3f}", interval, f"{d.num_won} of {d.num_seeds}", f"{d.p:.3g}"]


def _spread(spread: Spread | None) -> str:
    if spread is None:  # one run was done before another had begun
        return "-"
    return f"{spread.mean:.3f}" + (f" ± {spread.deviation:.3f}" if spread.deviation is not None else "")


def _table(title: str, cells: Cells) -> Table:
    heads, rows = cells
    table = Table(title=Text(title), title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if i else "left", no_wrap=i > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _grid(cells: Cells) -> str:
    heads, rows = cells
    table = grid([(escape(head), "") for head in heads], [list(map(escape, row)) for row in rows])
    return f'<div class="card">{table}</div>'


def _chart(result: AblationResult, skill: str | None, is_small: bool = False) -> Chart:
    lines = []
    for i, standing in enumerate(result.standings):
        curves = [run.points(skill) for run in result.of(standing.arm)]
        css = f"colour{i % NUM_COLOURS}" + " dashed" * (i >= NUM_COLOURS)
        lines.append(Line(standing.arm, css, mean_curve(curves), behind=curves if len(curves) > 1 else ()))
    return Chart(skill or "Mean over skills", lines, 0, 1, is_small=is_small, along="FLOPs")


def _runs(result: AblationResult, folder: Path) -> str:
    heads = [(escape(head), "") for head in ("arm", "seed", *result.skills, "mean", "FLOPs")] + [("report", "left")]
    rows = []
    for run in result.runs:
        scores = [f"{run.scores[skill]:.3f}" for skill in result.skills]
        place = escape(RunFolder(run.folder.relative_to(folder)).report.as_posix())
        cells = [str(run.seed), *scores, f"{run.mean:.3f}", number(run.flops), f'<a href="{place}">report</a>']
        rows.append([escape(run.arm), *cells])
    return f'<div class="card long">{grid(heads, rows)}</div>'


def _arms(result: AblationResult) -> str:
    rows = [[escape(name), escape(shlex.join(overrides))] for name, overrides in result.arms.items()]
    return f'<div class="card">{grid([("arm", "left"), ("overrides", "left wide")], rows)}</div>'
