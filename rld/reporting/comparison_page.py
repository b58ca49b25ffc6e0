"""Two runs on one page and in the terminal: scores, curves in the same charts, cost, and the options that differ."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rld.reporting.chart_groups import ChartGroup, Colours, chart_groups
from rld.reporting.charts import Chart, Line, figure
from rld.reporting.html import code_in, page, scrolling, table
from rld.reporting.run_comparison import RunComparison, ScorePair, Side, compare_runs
from rld.reporting.score_records import with_interval
from rld.reporting.series import duration, number
from rld.utils.console import SafeConsole
from rld.utils.files import write_text
from rld.utils.run_folder import RunFolder

_MOST_OPTIONS = 20
"""Options that differ and are printed; the page has all."""

_SCORE_HEADS = ("skill", "score", "rows", "A", "B", "B - A", "95% interval", "compared")


def show_comparison(first: Path, second: Path) -> None:
    """Draw two runs on one page, in the folder of the second, and print the tables and the page's path.

    Raises:
        UsageError: they cannot be compared.
        CheckpointError: a file of a run is damaged.
    """
    comparison = compare_runs(first, second)
    path = RunFolder(second).comparison
    write_text(path, comparison_page(comparison))
    console = SafeConsole(highlight=False)
    for side in comparison.sides:
        console.print(f"{side.letter}: {_about(side)}", markup=False, soft_wrap=True)
    for title, heads, rows in _tables(comparison):
        visible_rows = rows[:_MOST_OPTIONS] if heads[0] == "option" else rows
        console.print(_terminal_table(title, heads, visible_rows))
        if len(visible_rows) < len(rows):
            console.print(f"and {len(rows) - len(visible_rows)} more options, which are on the page")
    for note in [*findings(comparison), *comparison.notes]:
        console.print(f"- {note}", markup=False, soft_wrap=True)
    console.print(f"page: {path}", markup=False, soft_wrap=True)


def findings(comparison: RunComparison) -> list[str]:
    """Return in sentences on which skills one run scores higher than the other by more than chance."""
    compared = [pair for pair in comparison.scores if pair.difference is not None]
    sentences = []
    for letter, sign in (("B", 1), ("A", -1)):
        better = [
            f"`{pair.skill}` by {abs(pair.difference.value):.3f}"
            for pair in compared
            if pair.difference is not None and pair.is_beyond_chance and pair.difference.value * sign > 0
        ]
        if better:
            sentences.append(f"{letter} scores higher on {', '.join(better)}.")
    others = [f"`{pair.skill}`" for pair in compared if not pair.is_beyond_chance]
    if others:
        sentences.append(f"No difference beyond chance on {', '.join(others)}.")
    return sentences


def comparison_page(comparison: RunComparison) -> str:
    """Return the page as HTML, without scripts, which loads nothing."""
    a, b = comparison.sides
    title = f"{a.history.plan.name} beside {b.history.plan.name}"
    parts = [f"<h1>{escape(title)}</h1>", *map(_head, comparison.sides)]
    parts += [f'<p class="note">{code_in(note)}</p>' for note in comparison.notes]
    verdict = "".join(f"<li>{code_in(finding)}</li>" for finding in findings(comparison))
    parts.append(f'<ul class="verdict">{verdict}</ul>' if verdict else "")
    for heading, heads, rows in _tables(comparison):
        columns = [(escape(head), "left wide" if heads[0] == "option" else "") for head in heads]
        cells = [list(map(escape, row)) for row in rows]
        parts.append(f"<h2>{escape(heading)}</h2>{scrolling(table(columns, cells), is_long=len(rows) > _MOST_OPTIONS)}")
    parts += _charts(comparison)
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    parts.append(f"<footer>Drawn by rld from {escape(str(a.folder))} and {escape(str(b.folder))} at {now}</footer>")
    return page(f"{title}: rld report", "".join(parts))


def _about(side: Side) -> str:
    stage = "" if side.result is None else f", the model of stage {side.result.name}"
    return f"{side.folder} ({side.history.plan.name}, seed {side.history.summary.seed}, {side.state.state}{stage})"


def _head(side: Side) -> str:
    state = f'<span class="pill {side.state.state}">{side.state.state}</span>'
    command = side.history.summary.command
    command_html = f'<pre class="command">{escape(command)}</pre>' if command else ""
    return f'<div class="title"><h3>{side.letter}: {escape(str(side.folder))}</h3>{state}</div>{command_html}'


def _tables(comparison: RunComparison) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """Yield title, heads and rows of each table."""
    if comparison.scores:
        yield "Scores on held-out rows", _SCORE_HEADS, list(map(_score_row, comparison.scores))
    yield "Cost", ("stage", "time A", "B", "FLOPs A", "B", "teacher tokens A", "B"), list(_cost_rows(comparison))
    if comparison.options:
        yield "Options that differ", ("option", "A", "B"), [list(option) for option in comparison.options]


def _score_row(pair: ScorePair) -> list[str]:
    rows = ", ".join(dict.fromkeys("-" if count is None else str(count) for count in pair.rows))
    change, ends = "-", "-"
    if pair.difference is not None:
        change = f"{pair.difference.value:+.3f}"
        ends = f"{pair.difference.low:+.3f} to {pair.difference.high:+.3f}"
    return [pair.skill, pair.name, rows, *map(with_interval, pair.scores), change, ends, pair.basis]


def _cost_rows(comparison: RunComparison) -> Iterator[list[str]]:
    results = [{result.name: result for result in side.history.summary.stages} for side in comparison.sides]
    for name in dict.fromkeys([*results[0], *results[1]]):
        pair = [side.get(name) for side in results]
        tokens = [None if result is None else result.teacher_tokens for result in pair]
        yield [
            name,
            *("-" if result is None else duration(result.seconds) for result in pair),
            *("-" if result is None else number(result.flops) for result in pair),
            *("-" if count is None else number(count.scored) for count in tokens),
        ]
    states = [side.state for side in comparison.sides]
    totals = [*(duration(state.seconds) for state in states), *(number(state.flops) for state in states)]
    yield ["in all, so far" if any(state.state != "done" for state in states) else "in all", *totals, "", ""]


def _terminal_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    terminal_table = Table(title=Text(title), title_justify="left")
    is_text = heads[0] == "option"
    for i, head in enumerate(heads):
        terminal_table.add_column(Text(head), justify="right" if i and not is_text else "left", overflow="fold")
    for row in rows:
        terminal_table.add_row(*map(Text, row))
    return terminal_table


def _charts(comparison: RunComparison) -> Iterator[str]:
    """Yield the charts of each stage that both have, with the lines of both."""
    colours = Colours(*(side.history for side in comparison.sides))
    for pair in comparison.stages:
        groups = [
            chart_groups(stage, side.history.plan.skills, colours)
            for stage, side in zip(pair, comparison.sides, strict=True)
        ]
        yield f"<h2>{escape(pair[0].plan.name)}<small>B is drawn dashed</small></h2>"
        for group in _joined(*groups):
            size = "charts small" if all(chart.is_small for chart in group.charts) else "charts"
            yield f'<h3>{group.title}<small>{group.about}</small></h3><div class="{size}">'
            yield f"{''.join(map(figure, group.charts))}</div>"


def _joined(first: Sequence[ChartGroup], second: Sequence[ChartGroup]) -> Iterator[ChartGroup]:
    """Yield the groups of both runs; charts with the same title become one."""
    groups = [{group.title: group for group in groups} for groups in (first, second)]
    for title in dict.fromkeys([*groups[0], *groups[1]]):
        sides = [group[title] for group in groups if title in group]
        charts: dict[str, list[Chart]] = {}
        for letter, group in zip("AB", groups, strict=True):
            for chart in group[title].charts if title in group else []:
                lines = [_line_of(line, letter) for line in chart.lines]
                charts.setdefault(chart.title, []).append(replace(chart, lines=lines, marks=()))
        yield ChartGroup(title, sides[0].about, [_joint_chart(pair) for pair in charts.values()])


def _line_of(line: Line, letter: str) -> Line:
    css = line.css
    if letter == "B":
        css += " dotted" if "dashed" in css else " dashed"
    return replace(line, name=f"{line.name} {letter}", css=css)


def _joint_chart(charts: Sequence[Chart]) -> Chart:
    return replace(charts[0], lines=[line for chart in charts for line in chart.lines])
