"""Writes the table of docs/scores.md: `python -m tests.scores_page`. A test holds the page to it."""

from __future__ import annotations

from pathlib import Path

from rld.evaluation.scores import SCORES, find_score

PAGE = Path(__file__).parent.parent / "docs" / "scores.md"
BEGIN, END = "<!-- scores: written by python -m tests.scores_page -->\n", "<!-- end of scores -->\n"

_PREDICTED = {"text": "answers", "label": "labels", "likelihood": "texts"}


def table() -> str:
    tries = find_score("pass_at_1")
    assert tries is not None
    meaning = tries.meaning.replace("one of 1 sampled answers", "one of K sampled answers")
    scores = {**SCORES, "pass_at_K": tries._replace(meaning=meaning)}
    lines = ["| score | of | what it is |", "|---|---|---|"]
    lines += [f"| `{name}` | {_PREDICTED[score.predicts]} | {score.meaning} |" for name, score in scores.items()]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page's text with the table as it should be."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
