"""An ablation as tables for the terminal and as one page: scores, compute, and the uncertainty of differences."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rld.ablation.outcomes import TARGET_SHARE, AblationResult, ArmSummary, Measure, PairedDifference, Spread
from rld.ablation.statistics import mean_curve
from rld.reporting.chart_groups import NUM_COLOURS
from rld.reporting.charts import Chart, Line, figure
from rld.reporting.html import page, scrolling, table
from rld.reporting.series import number
from rld.utils.files import write_text
from rld.utils.run_folder import RunFolder

_ABOUT_SCORES = (
    "Main scores on the held-out rows, by default the share answered correctly; means over skills, ± standard "
    "deviation over seeds. "
    "'at {flops}': when a run had spent {flops} FLOPs, which all runs have spent. 'mean to {flops}': the mean over "
    "compute, from where all runs have begun to there."
)

_ABOUT_COMPUTE = (
    "FLOPs count sampling, teachers, gate, probes and training, not the scoring of held-out rows; stages that all arms "
    "share are charged to none. 'FLOPs to {target}': the median until a run reaches {target}, which is {share:.0%} of "
    "the best arm's final score, and how many seeds reach it."
)

_ABOUT_DIFFERENCES = (
    "Runs with the same seed are pairs. Each 95% interval is a bootstrap over seeds, not corrected for the number of "
    "intervals; with few seeds it is too narrow. p: a randomisation test, corrected for the number of arms (Holm); "
    "with this number of seeds no p-value is below {least:.2g} before the correction."
)


@dataclass(frozen=True)
class _Section:
    """A table of texts with its title and an explanation."""

    title: str
    about: str
    heads: list[str]
    rows: list[list[str]]


def terminal_tables(result: AblationResult) -> list[RenderableType]:
    """Return the tables for the terminal, each followed by its explanation."""
    parts: list[RenderableType] = []
    for section in _sections(result):
        parts += [_terminal_table(section), Text(section.about + "\n")]
    return parts


def write_page(result: AblationResult, folder: Path) -> Path:
    """Write `ablation.html` into `folder` and return its path."""
    parts = [f"<h1>{escape(result.recipe)}: {len(result.summaries)} arms</h1>"]
    for section in _sections(result):
        heads, rows = [(escape(head), "") for head in section.heads], [list(map(escape, row)) for row in section.rows]
        parts.append(f"<h2>{escape(section.title)}</h2>{scrolling(table(heads, rows))}")
        parts.append(f'<p class="note">{escape(section.about)}</p>')
    small = [figure(_chart(result, skill, is_small=True)) for skill in result.skills]
    parts += [
        "<h2>Held-out score over compute<small>bold: mean over seeds; faint: each seed</small></h2>",
        f'<div class="charts">{figure(_chart(result, None))}</div>',
        f'<h3>Each skill</h3><div class="charts small">{"".join(small)}</div>',
        f"<h2>Runs</h2>{_runs(result, folder)}<h2>Arms</h2>{_arms(result)}",
    ]
    path = folder / "ablation.html"
    write_text(path, page(f"{result.recipe}: rld ablate", "".join(parts)))
    return path


def _sections(result: AblationResult) -> list[_Section]:
    flops, target = number(result.flops), f"{result.target:.3f}"
    scores = _Section(
        "Held-out score",
        _ABOUT_SCORES.format(flops=flops),
        ["arm", "final", "worst skill", f"at {flops}", f"mean to {flops}"],
        [
            [arm.arm, *map(_spread, (arm.final, arm.worst, arm.at_equal_flops, arm.mean_to_equal_flops))]
            for arm in result.summaries
        ],
    )
    compute = _Section(
        "Compute",
        _ABOUT_COMPUTE.format(target=target, share=TARGET_SHARE),
        ["arm", "seeds", "FLOPs", f"FLOPs to {target}", "teacher tokens"],
        [_compute(arm) for arm in result.summaries],
    )
    if not result.differences:
        return [scores, compute]
    names: dict[Measure, str] = {
        "final": "final",
        "at_equal_flops": f"at {flops}",
        "mean_to_equal_flops": f"mean to {flops}",
    }
    num_seeds = min(difference.num_seeds for difference in result.differences)
    differences = _Section(
        f"Difference to {result.summaries[0].arm}",
        _ABOUT_DIFFERENCES.format(least=min(2.0 ** (1 - num_seeds), 1.0)),
        ["arm", "measure", "difference", "95% interval", "better on", "p"],
        [_difference(difference, names[difference.measure]) for difference in result.differences],
    )
    return [scores, compute, differences]


def _compute(arm: ArmSummary) -> list[str]:
    flops = "-" if arm.flops_to_target is None else number(arm.flops_to_target)
    reached = f"{flops} ({arm.num_reached} of {arm.num_seeds})"
    return [arm.arm, str(arm.num_seeds), number(arm.flops.mean), reached, number(arm.num_scored)]


def _difference(d: PairedDifference, measure: str) -> list[str]:
    interval = "-" if d.interval is None else f"{d.interval[0]:+.3f} to {d.interval[1]:+.3f}"
    return [d.arm, measure, f"{d.mean:+.3f}", interval, f"{d.num_better} of {d.num_seeds}", f"{d.p:.3g}"]


def _spread(spread: Spread | None) -> str:
    if spread is None:  # one run was finished before another had begun its compared stage
        return "-"
    return f"{spread.mean:.3f}" + (f" ± {spread.deviation:.3f}" if spread.deviation is not None else "")


def _terminal_table(section: _Section) -> Table:
    terminal_table = Table(title=Text(section.title), title_justify="left")
    for i, head in enumerate(section.heads):
        terminal_table.add_column(Text(head), justify="right" if i else "left", no_wrap=i > 0)
    for row in section.rows:
        terminal_table.add_row(*map(Text, row))
    return terminal_table


def _chart(result: AblationResult, skill: str | None, is_small: bool = False) -> Chart:
    """Draw scores over FLOPs, of a skill or the mean over skills: a line for each arm."""
    lines = []
    for i, arm in enumerate(result.summaries):
        curves = [run.points(skill) for run in result.runs_of(arm.arm)]
        css = f"colour{i % NUM_COLOURS}" + " dashed" * (i >= NUM_COLOURS)
        lines.append(Line(arm.arm, css, mean_curve(curves), parts=curves if len(curves) > 1 else ()))
    return Chart(skill or "Mean over skills", lines, 0, 1, is_small=is_small, x_name="FLOPs")


def _runs(result: AblationResult, folder: Path) -> str:
    heads = [(escape(head), "") for head in ("arm", "seed", *result.skills, "mean", "FLOPs")] + [("report", "left")]
    rows = []
    for run in result.runs:
        scores = [f"{run.scores[skill]:.3f}" for skill in result.skills]
        link = escape(RunFolder(run.folder.relative_to(folder)).report.as_posix())
        cells = [str(run.seed), *scores, f"{run.mean:.3f}", number(run.flops), f'<a href="{link}">report</a>']
        rows.append([escape(run.arm), *cells])
    return scrolling(table(heads, rows), is_long=True)


def _arms(result: AblationResult) -> str:
    rows = [[escape(name), escape(shlex.join(overrides))] for name, overrides in result.arms.items()]
    return scrolling(table([("arm", "left"), ("overrides", "left wide")], rows))
