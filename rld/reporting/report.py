"""The page that tells how a run went, in one file: no scripts, nothing to load."""

from __future__ import annotations

from html import escape
from pathlib import Path

import yaml

from rld.reporting.chart_groups import ChartGroup, Colours, chart_groups
from rld.reporting.charts import figure
from rld.reporting.history import RunHistory, StageHistory, read_run
from rld.reporting.html import grid, page
from rld.reporting.series import number
from rld.reporting.tables import html_table, teacher_tokens_note
from rld.utils.files import write_text
from rld.utils.run_folder import RunFolder

FEW_CHARTS = 3
"""A stage with no more charts has them in one line, without headings, beside its scores."""

_STATES = {
    "running": "The run was still at work when this page was drawn, or it was killed.",
    "stopped": "The run was stopped before its end; the same command with --resume goes on from there.",
    "failed": "The run ended with an error; once that is mended, the same command with --resume goes on from there.",
}


def write_report(run: Path) -> Path:
    """Draw `report.html` from what is in the folder `run`, of a run finished or not, and return its path.

    Raises:
        CheckpointError: the folder holds no run, or a file of it is damaged.
    """
    path = RunFolder(run).report
    write_text(path, _page(read_run(run)))
    return path


def _page(history: RunHistory) -> str:
    colours = Colours(history)
    parts = [_header(history), *_notes(history), _outcome(history, colours), _overview(history)]
    parts += [_stage(history, number, colours) for number in range(len(history.stages))]
    parts += [_recipe(history), f"<footer>Drawn by rld from {escape(str(history.folder))}</footer>"]
    return page(f"{history.plan.name}: rld report", "".join(parts))


def _header(history: RunHistory) -> str:
    summary = history.summary
    facts = {"seed": str(summary.seed), "time": _time(summary.seconds), "FLOPs": number(summary.flops)}
    facts |= summary.versions
    items = "".join(f"<li><span>{escape(name)}</span> {escape(fact)}</li>" for name, fact in facts.items())
    command = summary.command or f"rld train {history.plan.name} seed={summary.seed}"
    return (
        f'<div class="title"><h1>{escape(history.plan.name)}</h1>'
        f'<span class="pill {escape(summary.status)}">{escape(summary.status)}</span></div>'
        f'<ul class="facts">{items}</ul><pre class="command">{escape(command)}</pre>'
    )


def _notes(history: RunHistory) -> list[str]:
    notes = [_STATES[history.summary.status]] if history.summary.status in _STATES else []
    notes += [
        f"The last line of {name} was cut off, as happens when a run is killed; it is left out." for name in history.cut
    ]
    if not any(stage.metrics for stage in history.stages):
        notes.append("Nothing has been logged yet.")
    return [f'<p class="note">{escape(note)}</p>' for note in notes]


def _overview(history: RunHistory) -> str:
    rows, seconds, flops = [], 0.0, 0.0
    for i, stage in enumerate(history.stages):
        name, cells = escape(stage.plan.name), ["-", "-", "not started"]
        if stage.metrics:
            name = f'<a href="#stage{i}">{name}</a>'
            last = stage.metrics[-1]
            cells = [_time(last["seconds"] - seconds), number(last["flops"] - flops), f"at step {last['step']}"]
        if stage.result:
            cells = [_time(stage.result.seconds), number(stage.result.flops), "done"]
            seconds, flops = seconds + stage.result.seconds, flops + stage.result.flops
        rows.append([name, stage.plan.run, str(stage.plan.steps), *cells])
    heads = [("stage", "left"), ("kind", "left"), ("steps", ""), ("time", ""), ("FLOPs", ""), ("state", "left")]
    return f'<h2>Stages</h2><div class="card">{grid(heads, rows)}</div>'


def _outcome(history: RunHistory, colours: Colours) -> str:
    """Draw the scores of the last stage that is finished."""
    if not history.summary.stages:
        return ""
    result = history.summary.stages[-1]
    what = "Result" if result.name == history.plan.stages[-1].name else f"So far: {result.name}"
    note = teacher_tokens_note(result)
    return (
        f"<h2>{escape(what)}<small>held-out rows answered correctly; hollow before, full after, bars are teachers"
        f"{f'; {escape(note)}' if note else ''}</small></h2>{html_table(result, history.summary.heldout_rows, colours)}"
    )


def _stage(history: RunHistory, index: int, colours: Colours) -> str:
    stage = history.stages[index]
    if not stage.metrics:
        return ""
    about = f"kind: {stage.plan.run}"
    if stage.plan.teachers:
        about += f"; teachers: {', '.join(stage.plan.teachers)}"
    head = f'<h2 id="stage{index}">{escape(stage.plan.name)}<small>{escape(about)}</small></h2>'
    groups = chart_groups(stage, history.plan.skills, colours)
    charts = [chart for group in groups for chart in group.charts]
    is_last = bool(history.summary.stages) and stage.result == history.summary.stages[-1]  # its scores are on top
    scores = html_table(stage.result, history.summary.heldout_rows, colours) if stage.result and not is_last else ""
    if len(charts) <= FEW_CHARTS:
        parts = [f'<div class="beside">{"".join(map(figure, charts))}{scores}</div>']
    else:
        parts = [scores, *map(_group, groups)]
    return head + _time_spent(stage) + "".join(parts) + _events(stage)


def _time_spent(stage: StageHistory) -> str:
    shares = ", ".join(f"{part} {share:.1%}" for part, share in stage.time_shares().items())
    return f'<p class="note">Where the time of an update went: {escape(shares)}.</p>' if shares else ""


def _group(group: ChartGroup) -> str:
    size = "charts small" if all(chart.is_small for chart in group.charts) else "charts"
    charts = "".join(map(figure, group.charts))
    return f'<h3>{group.title}<small>{group.about}</small></h3><div class="{size}">{charts}</div>'


def _events(stage: StageHistory) -> str:
    if not stage.events:
        return ""
    rows = [
        [str(e.step), escape(e.skill), f"{escape(e.kind)}: {escape(e.about)}", escape(e.measured), escape(e.rule)]
        for e in stage.events
    ]
    heads = [("step", ""), ("skill", "left"), ("decision", "left"), ("measured", "left wide"), ("rule", "left")]
    return (
        "<h3>Events<small>what was decided or changed, marked in the charts that show it</small></h3>"
        f'<div class="card long">{grid(heads, rows)}</div>'
    )


def _recipe(history: RunHistory) -> str:
    text = yaml.safe_dump(history.recipe, sort_keys=False, allow_unicode=True, width=110)
    return f"<details><summary>The recipe, with all its defaults</summary><pre>{escape(text)}</pre></details>"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
