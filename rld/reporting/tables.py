"""Accuracy per skill on held-out rows, as tables for the terminal and for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any

from rich.table import Table
from rich.text import Text

from rld.reporting.chart_groups import Colours
from rld.reporting.history import Result, Summary
from rld.reporting.series import number
from rld.types import Row


@dataclass(frozen=True)
class _Score:
    """One row of the closing table; None: not measured."""

    skill: str
    num_rows: int | None
    before: float | None
    after: float | None
    teachers: list[float | None]


def _scores(result: Result, heldout_rows: Mapping[str, int]) -> tuple[list[_Score], _Score]:
    """Return the rows for the skills, and their mean."""
    columns = [result.before, result.after, *(teacher.scores for teacher in result.teachers.values())]
    rows = []
    for skill in result.after:
        before, after, *teachers = [column.get(skill) for column in columns]
        rows.append(_Score(skill, heldout_rows.get(skill), before, after, teachers))
    before, after, *teachers = [fmean(column.values()) if column else None for column in columns]
    return rows, _Score("mean", sum(heldout_rows.values()), before, after, teachers)


def closing_table(summary: Mapping[str, Any]) -> Table:
    """Return the table that closes a run: the student of the last finished stage before and after, and its teachers.

    Args:
        summary: The content of `summary.json`, with at least one finished stage.
    """
    outcome = Summary.model_validate(summary)
    result = outcome.stages[-1]
    shown = Table(
        title=Text(f"{outcome.recipe}: held-out rows answered correctly"), caption=teacher_tokens_note(result)
    )
    heads = ["rows", "before", "after", *(f"{name} ({number(t.parameters)})" for name, t in result.teachers.items())]
    shown.add_column(Text(f"skill, student ({number(result.student.parameters)})"))
    for head in heads:
        shown.add_column(Text(head), justify="right")
    rows, mean = _scores(result, outcome.heldout_rows)
    for row in [*rows, mean]:
        if row is mean:
            shown.add_section()
        cells = [row.before, row.after, *row.teachers]
        shown.add_row(Text(row.skill), str(row.num_rows or "-"), *map(_share, cells))
    return shown


def teacher_tokens_note(result: Result) -> str | None:
    """Say how many tokens teachers scored, and how many were saved; None for a stage without teachers."""
    tokens = result.teacher_tokens
    if tokens is None:
        return None
    share = tokens.saved / max(tokens.scored + tokens.saved, 1)
    if tokens.saved < 0:
        return (
            f"teachers scored {number(tokens.scored)} tokens; the gate cost {number(-tokens.saved)} more than it saved"
        )
    return f"teachers scored {number(tokens.scored)} tokens; {number(tokens.saved)} more ({share:.0%}) were saved"


def scores_table(model: str, scores: Mapping[str, float], held_out: Iterable[Row]) -> Table:
    """Return the accuracy of one model per skill, with the number of held-out rows behind each."""
    num_rows = Counter(row["skill"] for row in held_out)
    shown = Table("skill", title=Text(f"{model}: held-out rows answered correctly"))
    for head in ("rows", "correct"):
        shown.add_column(head, justify="right")
    for skill, score in scores.items():
        shown.add_row(Text(skill), str(num_rows[skill]), _share(score))
    shown.add_section()
    shown.add_row("mean", str(num_rows.total()), _share(fmean(scores.values())))
    return shown


def html_table(result: Result, heldout_rows: Mapping[str, int], colours: Colours) -> str:
    """Draw the same as `table` for any stage, with a track from 0 to 1 per skill: hollow before, full after."""
    names = list(result.teachers)
    heads = ["skill", "rows", f"before<small>{number(result.student.parameters)} student</small>", "after", "change"]
    heads += [
        f'<span class="{colours.css("teacher", name)}"><i></i>{escape(name)}</span>'
        f"<small>{number(teacher.parameters)} teacher</small>"
        for name, teacher in result.teachers.items()
    ]
    rows, mean = _scores(result, heldout_rows)
    body = ""
    for row in [*rows, mean]:
        css = "plain" if row is mean else colours.css("skill", row.skill)
        change = None if row.before is None or row.after is None else row.after - row.before
        direction = "" if not change else "up" if change > 0 else "down"
        body += (
            f'<tr class="{css}{" mean" * (row is mean)}"><td><i></i>{escape(row.skill)}</td>'
            f"<td>{row.num_rows or '-'}</td><td>{_share(row.before)}</td>"
            f'<td class="after">{_share(row.after)}</td>'
            f'<td class="{direction}">{"-" if change is None else f"{change:+.3f}"}</td>'
            + "".join(f"<td>{_share(score)}</td>" for score in row.teachers)
            + f"<td>{_track(row, [colours.css('teacher', name) for name in names])}</td></tr>"
        )
    head = "".join(f"<th>{head}</th>" for head in heads) + '<th class="scale"><span>0</span><span>1</span></th>'
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _track(row: _Score, teachers: list[str]) -> str:
    def x(score: float) -> float:
        return 8 + 154 * score

    parts = ['<path class="rail" d="M8 9h154"/>']
    parts += [
        f'<path class="tick {css}" d="M{x(score):.1f} 2v14"/>'
        for score, css in zip(row.teachers, teachers, strict=True)
        if score is not None
    ]
    if row.before is not None and row.after is not None:
        parts.append(f'<path class="way" d="M{x(row.before):.1f} 9H{x(row.after):.1f}"/>')
        parts.append(f'<circle cx="{x(row.before):.1f}" cy="9" r="4"/>')
        parts.append(f'<circle class="to" cx="{x(row.after):.1f}" cy="9" r="5"/>')
    return f'<svg class="track" viewBox="0 0 170 18" aria-hidden="true">{"".join(parts)}</svg>'


def _share(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
