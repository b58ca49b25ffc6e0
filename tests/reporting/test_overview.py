"""What `rld check` prints of rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.console import Console

from rld.reporting.overview import label_table, skill_tables


def test_a_terminal_obeys_no_text_of_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\x1b[2J\x1b]0;a\x07b\u202ec\r\né"
    skill = {"skill": "s", "num_levels": 1, "num_rows": 1, "num_questions": 1, "longest_answer": 1}
    label = SimpleNamespace(skill="s", label=text, words=text, synonyms=[text], num_rows=1, tokens={"model": [text]})
    console = Console(width=200)
    console.print(skill_tables([SimpleNamespace(**skill, prompt=text, answer=text)]), label_table([label]))
    printed = capsys.readouterr().out
    assert printed.count(r"\x1b[2J\x1b]0;a\x07b\u202ec\r\né") == 6
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(printed)
