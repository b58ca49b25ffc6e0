"""Scores per skill on held-out rows, as tables for the terminal and for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

from rich.table import Table
from rich.text import Text

from rld.reporting.chart_groups import Colours
from rld.reporting.html import scrolling
from rld.reporting.score_records import Scoring, about_scores
from rld.reporting.series import number
from rld.reporting.summary_records import StageResult, Summary
from rld.types import Row

_MOST_COLUMNS = 5
"""Models whose names stand side by side in a terminal of 80 characters."""

_TRACK, _TRACK_START = 154, 8
"""Length of the track that shows scores from 0 to 1, and where it starts, in SVG units."""


@dataclass(frozen=True)
class _ScoreRow:
    """The scores of a skill in one stage, or their mean; None: not measured."""

    skill: str
    num_rows: int | None
    before: float | None
    after: float | None
    teachers: list[float | None]


def _score_rows(result: StageResult, heldout_rows: Mapping[str, int]) -> tuple[list[_ScoreRow], _ScoreRow]:
    """Return a row for each skill, and the row of the means."""
    columns = [result.before, result.after, *(teacher.scores for teacher in result.teachers.values())]
    rows = []
    for skill in result.after:
        before, after, *teachers = [column.get(skill) for column in columns]
        rows.append(_ScoreRow(skill, heldout_rows.get(skill), before, after, teachers))
    before, after, *teachers = [fmean(column.values()) if column else None for column in columns]
    return rows, _ScoreRow("mean", sum(heldout_rows.values()), before, after, teachers)


def closing_table(run: Summary) -> Table:
    """Return the table that closes a run: the students of all finished stages, and the teachers of the last.

    Many models stand in lines and not in columns, so that no name is cut.

    Args:
        run: With at least one finished stage.
    """
    last = run.stages[-1]
    notes = "\n".join(filter(None, [*map(_below_start_note, run.stages), teacher_tokens_note(last)]))
    about = about_scores(stage.main_score(skill) for stage in run.stages for skill in stage.after)
    table = Table(title=Text(f"{run.recipe}: {about}"), caption=Text(notes) if notes else None)
    columns = _student_and_teacher_columns(run.stages)
    lines = [["skill", "rows", *(head for head, _ in columns)]]
    for skill in dict.fromkeys(skill for stage in run.stages for skill in stage.after):
        scores = [_score_text(column.get(skill)) for _, column in columns]
        lines.append([skill, str(run.heldout_rows.get(skill, "-")), *scores])
    means = [_score_text(fmean(column.values()) if column else None) for _, column in columns]
    lines.append(["mean", str(sum(run.heldout_rows.values()) or "-"), *means])
    has_many_models = len(columns) > _MOST_COLUMNS
    head, *body = [list(line) for line in zip(*lines, strict=True)] if has_many_models else lines
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="right" if i else "left")
    for i, line in enumerate(body):
        table.add_row(*map(Text, line), end_section=i == (0 if has_many_models else len(body) - 2))
    return table


def _student_and_teacher_columns(stages: Sequence[StageResult]) -> list[tuple[str, Mapping[str, float]]]:
    """Return heads and scores: each stage's model, the last stage's student before it, its teachers, what it merged.

    A model with the scores of an earlier stage's model is that model, and has no second column.
    """
    last, columns = stages[-1], list[tuple[str, Mapping[str, float]]]()
    for stage in stages:
        if stage is last and last.before and last.before not in [scores for _, scores in columns]:
            columns.append((f"before {last.name}", last.before))
        columns.append((f"{stage.name} ({number(stage.student.parameters)})", stage.after))
    students = [scores for _, scores in columns]
    others = [(f"teacher {name}", teacher) for name, teacher in last.teachers.items()]
    for name, other in [*others, *last.merged.items()]:
        if other.scores not in students:
            columns.append((f"{name} ({number(other.parameters)})", other.scores))
    return columns


def _below_start_note(result: StageResult) -> str | None:
    """Return on which skills a stage's student ended below its start; None if on none."""
    losses = [f"{skill} -{loss:.2f}" for skill, loss in result.below_start.items()]
    return f"warning: {result.name} ended below its start: {', '.join(losses)}" if losses else None


def teacher_tokens_note(result: StageResult) -> str | None:
    """Return how many tokens teachers scored, and how many they did not need to; None for a stage without teachers."""
    tokens = result.teacher_tokens
    if tokens is None:
        return None
    scored = f"teachers scored {number(tokens.scored)} tokens"
    if tokens.saved < 0:
        return f"{scored}; the gate cost {number(-tokens.saved)} more than it saved"
    share = tokens.saved / max(tokens.scored + tokens.saved, 1)
    return f"{scored}; {number(tokens.saved)} more ({share:.0%}) were saved"


def scores_table(model: str, scoring: Scoring, held_out: Iterable[Row]) -> Table:
    """Return the scores of one model per skill with their 95% intervals, and the number of held-out rows."""
    num_rows = Counter(row["skill"] for row in held_out)
    main = {skill: next(iter(scores)) for skill, scores in scoring.items()}
    table = Table("skill", title=Text(f"{model}: {about_scores(main.values())}"))
    for head in ("rows", "score", "value", "95% interval"):
        table.add_column(head, justify="left" if head == "score" else "right")
    for skill, scores in scoring.items():
        for name, score in scores.items():
            cells = (str(num_rows[skill] or "-"), Text(name)) if name == main[skill] else ("", Text(name))
            ends = f"{_score_text(score.low)} to {_score_text(score.high)}"
            table.add_row(Text(skill if name == main[skill] else ""), *cells, _score_text(score.value), ends)
    table.add_section()
    mean = fmean(scoring[skill][name].value for skill, name in main.items())
    table.add_row("mean", str(num_rows.total()), "of the first", _score_text(mean), "")
    return table


def html_table(result: StageResult, heldout_rows: Mapping[str, int], colours: Colours) -> str:
    """Return a stage's scores as HTML, with a track from 0 to 1 for each skill: a ring before, a dot after."""
    names = list(result.teachers)
    heads = ["skill", "rows", f"before<small>{number(result.student.parameters)} student</small>", "after", "change"]
    heads += [
        f'<span class="{colours.css("teacher", name)}"><i></i>{escape(name)}</span>'
        f"<small>{number(teacher.parameters)} teacher</small>"
        for name, teacher in result.teachers.items()
    ]
    rows, mean = _score_rows(result, heldout_rows)
    teacher_css = [colours.css("teacher", name) for name in names]
    body = [_html_row(row, colours.css("skill", row.skill), teacher_css) for row in rows]
    body.append(_html_row(mean, "plain mean", teacher_css))
    head = "".join(f"<th>{head}</th>" for head in heads) + '<th class="scale"><span>0</span><span>1</span></th>'
    return scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def _html_row(row: _ScoreRow, css: str, teacher_css: Sequence[str]) -> str:
    change = None if row.before is None or row.after is None else row.after - row.before
    direction = "" if not change else "up" if change > 0 else "down"
    return (
        f'<tr class="{css}"><td><i></i>{escape(row.skill)}</td>'
        f"<td>{row.num_rows or '-'}</td><td>{_score_text(row.before)}</td>"
        f'<td class="after">{_score_text(row.after)}</td>'
        f'<td class="{direction}">{"-" if change is None else f"{change:+.3f}"}</td>'
        + "".join(f"<td>{_score_text(score)}</td>" for score in row.teachers)
        + f"<td>{_track(row, teacher_css)}</td></tr>"
    )


def _track(row: _ScoreRow, teacher_css: Sequence[str]) -> str:
    def x(score: float) -> str:
        return f"{_TRACK_START + _TRACK * score:.1f}"

    parts = [f'<path class="rail" d="M{_TRACK_START} 9h{_TRACK}"/>']
    parts += [
        f'<path class="tick {css}" d="M{x(score)} 2v14"/>'
        for score, css in zip(row.teachers, teacher_css, strict=True)
        if score is not None
    ]
    if row.before is not None and row.after is not None:
        parts.append(f'<path class="way" d="M{x(row.before)} 9H{x(row.after)}"/>')
        parts.append(f'<circle cx="{x(row.before)}" cy="9" r="4"/>')
        parts.append(f'<circle class="to" cx="{x(row.after)}" cy="9" r="5"/>')
    return f'<svg class="track" viewBox="0 0 170 18" aria-hidden="true">{"".join(parts)}</svg>'


def _score_text(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
