"""The report of a run: one HTML file, without scripts, which loads nothing."""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from statistics import fmean

import yaml

from rld.reporting.chart_groups import ChartGroup, Colours, chart_groups
from rld.reporting.charts import figure
from rld.reporting.exports import export_html
from rld.reporting.history import RunHistory, StageHistory, read_run
from rld.reporting.html import code_in, page, scrolling, table
from rld.reporting.run_state import RunState, run_state
from rld.reporting.samples import samples_table
from rld.reporting.score_records import about_scores
from rld.reporting.score_tables import all_scores
from rld.reporting.series import number
from rld.reporting.spending import spending_html
from rld.reporting.tables import closing_table, html_table, teacher_tokens_note
from rld.reporting.verdict import verdict
from rld.utils.console import SafeConsole
from rld.utils.files import write_text
from rld.utils.run_folder import RunFolder

FEW_CHARTS = 3
"""A stage with no more charts has them in one row, without headings, beside its scores."""

ACCOUNTS = {
    "generation": "the student samples completions",
    "teachers": "teachers score completions",
    "gate": "teachers answer prompts before they may teach on them",
    "student": "updates of the student",
    "retention": "protected skills are probed and replayed",
    "answers": "teachers answer probes, and prompts whose answers are learnt",
}
"""What each account of FLOPs counts, in short."""

_TONE_STYLES = {"good": "green", "bad": "red", "neutral": None}
"""How the terminal shows the findings of a verdict."""

REFRESH_SECONDS = 30
"""How often a browser reads the page of a run anew that was running when it was drawn."""


def write_report(run: Path) -> Path:
    """Draw `report.html` from what the folder of a run holds, finished or not, and return its path.

    Raises:
        CheckpointError: the folder holds no run, or a file of it is damaged.
    """
    path = RunFolder(run).report
    write_text(path, _page(read_run(run)))
    return path


def show_report(run: Path) -> None:
    """Draw the report of a run, and print its scores, its verdict and the page's path.

    Raises:
        CheckpointError: the folder holds no run, or a file of it is damaged.
    """
    console = SafeConsole(highlight=False)
    path, history = write_report(run), read_run(run)
    if history.summary.stages and history.summary.status == "done":
        console.print(closing_table(history.summary))
    for note in filter(None, [str(run_state(history)), *history.notes]):
        console.print(f"- {note}", markup=False, soft_wrap=True)
    for finding in verdict(history):
        console.print(f"- {finding}", style=_TONE_STYLES[finding.tone], markup=False, soft_wrap=True)
    console.print(f"report: {path}", markup=False, soft_wrap=True)


def _page(history: RunHistory) -> str:
    colours, state = Colours(history), run_state(history)
    parts = [
        _header(history, state),
        *_notes(history, state),
        _verdict(history),
        _scores(history, colours),
        _stages(history),
    ]
    parts += [_compute(history), spending_html(history)]
    parts += [export_html(result.name, result.export) for result in history.summary.stages if result.export is not None]
    parts += [_stage(history, number, colours) for number in range(len(history.stages))]
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    parts += [_recipe(history), f"<footer>Drawn by rld from {escape(str(history.folder))} at {now}</footer>"]
    refresh = REFRESH_SECONDS if state.state == "running" else None
    return page(f"{history.plan.name}: rld report", "".join(parts), refresh)


def _header(history: RunHistory, state: RunState) -> str:
    summary = history.summary
    facts = {"seed": str(summary.seed), "time": _time(state.seconds), "FLOPs": number(state.flops)}
    if summary.launch is not None:
        facts["run by"] = str(summary.launch)
    facts |= summary.versions
    items = "".join(f"<li><span>{escape(name)}</span> {escape(fact)}</li>" for name, fact in facts.items())
    command = summary.command or f"rld train {history.plan.name} seed={summary.seed}"
    return (
        f'<div class="title"><h1>{escape(history.plan.name)}</h1>'
        f'<span class="pill {state.state}">{state.state}</span></div>'
        f'<ul class="facts">{items}</ul><pre class="command">{escape(command)}</pre>'
    )


def _notes(history: RunHistory, state: RunState) -> list[str]:
    first = code_in(str(state))
    if state.state == "running":
        first += f" This page is drawn again at checkpoints; a browser reads it anew every {REFRESH_SECONDS} seconds."
    notes = [f"{remark}." for remark in (history.summary.launch.remarks if history.summary.launch else [])]
    notes += history.notes
    if not any(stage.metrics for stage in history.stages):
        notes.append("Nothing has been logged yet.")
    return [f'<p class="note">{note}</p>' for note in filter(None, [first, *map(escape, notes)])]


def _verdict(history: RunHistory) -> str:
    items = "".join(f'<li class="{finding.tone}">{code_in(str(finding))}</li>' for finding in verdict(history))
    return f'<ul class="verdict">{items}</ul>' if items else ""


def _stages(history: RunHistory) -> str:
    """Return the table of all stages: their time, FLOPs and state, and the mean score of each student."""
    rows, seconds, flops = [], 0.0, 0.0
    for i, stage in enumerate(history.stages):
        name, cells = escape(stage.plan.name), ["-", "-", "not started", "-", "-"]
        if stage.metrics:
            name = f'<a href="#stage{i}">{name}</a>'
            last = stage.metrics[-1]
            state = f"at step {last['step']}"
            cells = [_time(last["seconds"] - seconds), number(last["flops"] - flops), state, "-", "-"]
        if stage.result:
            columns = stage.result.before, stage.result.after
            scores = [f"{fmean(column.values()):.3f}" if column else "-" for column in columns]
            cells = [_time(stage.result.seconds), number(stage.result.flops), "done", *scores]
            seconds, flops = seconds + stage.result.seconds, flops + stage.result.flops
        rows.append([name, escape(stage.plan.kind), str(stage.plan.steps or "-"), *cells])
    heads = [("stage", "left"), ("kind", "left"), ("steps", ""), ("time", ""), ("FLOPs", ""), ("state", "left")]
    heads += [("mean score before", ""), ("after", "")]
    return f"<h2>Stages</h2>{scrolling(table(heads, rows))}"


def _compute(history: RunHistory) -> str:
    """Return the table of what the FLOPs of each finished stage were spent on; empty where none recorded it."""
    results = [result for result in history.summary.stages if result.flops_by_account]
    accounts = [name for name in ACCOUNTS if any(result.flops_by_account.get(name) for result in results)]
    if not accounts:
        return ""
    rows = []
    for result in results:
        total = sum(result.flops_by_account.values()) or 1.0
        flops = [result.flops_by_account.get(name, 0.0) for name in accounts]
        cells = [f"{number(value)}<small>{value / total:.0%}</small>" if value else "-" for value in flops]
        rows.append([escape(result.name), *cells, number(result.flops)])
    heads = [("stage", "left"), *((name, "") for name in accounts), ("total", "")]
    note = "; ".join(f"{name}: {ACCOUNTS[name]}" for name in accounts)
    note += ". The scoring of held-out rows is not counted."
    return (
        "<h2>Where the compute went<small>FLOPs, and the share of each stage's</small></h2>"
        f'{scrolling(table(heads, rows))}<p class="note">{escape(note)}</p>'
    )


def _scores(history: RunHistory, colours: Colours) -> str:
    """Return the scores of the last finished stage."""
    if not history.summary.stages:
        return ""
    result = history.summary.stages[-1]
    title = "Result" if result.name == history.plan.stages[-1].name else f"Result so far: {result.name}"
    note = teacher_tokens_note(result)
    about = about_scores(map(result.main_score, result.after))
    about += "; ring: before, dot: after, bars: teachers" + (f"; {note}" if note else "")
    rows = html_table(result, history.summary.heldout_rows, colours)
    samples = next((samples_table(s.samples, colours) for s in history.stages if s.plan.name == result.name), "")
    if samples:
        note = "a few held-out rows of each skill, greedy answers; all stages are in samples.jsonl"
        samples = f"<h3>Answers<small>{note}</small></h3>{samples}"
    return f"<h2>{escape(title)}<small>{escape(about)}</small></h2>{rows}{all_scores(result)}{samples}"


def _stage(history: RunHistory, index: int, colours: Colours) -> str:
    stage = history.stages[index]
    if not stage.metrics:
        return ""
    about = f"kind: {stage.plan.kind}"
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
        [str(event.step), escape(event.skill), escape(event.kind), escape(event.sentence)] for event in stage.events
    ]
    heads = [("step", ""), ("skill", "left"), ("kind", "left"), ("what happened", "left wide")]
    return (
        "<h3>Events<small>decisions and changes, which are marked in the charts that show them</small></h3>"
        f"{scrolling(table(heads, rows), is_long=True)}"
    )


def _recipe(history: RunHistory) -> str:
    text = yaml.safe_dump(history.recipe, sort_keys=False, allow_unicode=True, width=110)
    return f"<details><summary>The recipe, with all its defaults</summary><pre>{escape(text)}</pre></details>"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
