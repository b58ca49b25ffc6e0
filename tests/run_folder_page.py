"""Writes the table of metrics in docs/run_folder.md: `python -m tests.run_folder_page`. A test holds the page to it."""

from __future__ import annotations

import textwrap
from pathlib import Path

from rld.reporting.metric_names import LEFT_OUT, METRICS

PAGE = Path(__file__).parent.parent / "docs" / "run_folder.md"
BEGIN, END = "<!-- metrics: written by python -m tests.run_folder_page -->\n", "<!-- end of metrics -->\n"


def table() -> str:
    lines = ["| metric | unit | what it measures | chart |", "|---|---|---|---|"]
    lines += [f"| `{m.pattern}` | {m.unit or '-'} | {m.meaning} | {m.chart or '-'} |" for m in METRICS]
    for library, names in LEFT_OUT.items():
        text = f"Metrics of {library} that are left out on purpose: {', '.join(f'`{name}`' for name in names)}."
        lines += ["", *textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page's text with the table as it should be."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
