"""All scores of a stage with their intervals, and its confusion tables, as HTML for the report."""

from __future__ import annotations

from html import escape

from rld.reporting.html import scrolling, table
from rld.reporting.score_records import ConfusionRecord, ScoreRecord
from rld.reporting.summary_records import StageResult


def all_scores(result: StageResult) -> str:
    """Return the table of all scores of all scorings, and the confusion tables; empty for a run that has none."""
    if not result.scorings:
        return ""
    scorings = list(result.scorings)
    rows = []
    for skill, scores in result.scorings["after"].items():
        for name in scores:
            cells = [result.scorings[scoring].get(skill, {}).get(name) for scoring in scorings]
            rows.append([escape(skill), escape(name), *map(_cell, cells)])
        teachers = {f"teacher/{name}": teacher for name, teacher in result.teachers.items()}
        agreement = [teachers[name].agreement.get(skill) if name in teachers else None for name in scorings]
        if any(cell is not None for cell in agreement):
            rows.append([escape(skill), "same answer as the student", *map(_cell, agreement)])
    heads = [("skill", "left"), ("score", "left"), *((escape(scoring), "") for scoring in scorings)]
    note = "with 95% intervals over the held-out rows"
    tables = "".join(_confusion(skill, confusion) for skill, confusion in result.confusion.items())
    return f"<h3>All scores<small>{note}</small></h3>{scrolling(table(heads, rows))}{tables}"


def _cell(score: ScoreRecord | None) -> str:
    return "-" if score is None else f"{score.value:.3f}<small>{score.low:.3f} to {score.high:.3f}</small>"


def _confusion(skill: str, confusion: ConfusionRecord) -> str:
    heads = [("gold label", "left"), *((escape(label), "") for label in confusion.labels)]
    rows = [[escape(gold), *map(str, counts)] for gold, counts in zip(confusion.labels, confusion.counts, strict=True)]
    about = "held-out rows of each gold label, by the label that the model gives them"
    return f"<h3>Labels of {escape(skill)}<small>{about}</small></h3>{scrolling(table(heads, rows))}"
