"""What is told: by one process of a distributed run, whichever launcher started it, and never a terminal's commands."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

import rld
from rld.cli import main
from rld.utils.console import SafeConsole
from rld.utils.messages import is_main_process, tell, warnings_as_lines

HOSTILE = "\x1b]0;a\x07b\x9b2J\u202ec\u2066\r\x7f"
SHOWN = r"\x1b]0;a\x07b\x9b2J\u202ec\u2066\r\x7f"


@pytest.mark.parametrize("name", ["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"])
def test_the_main_process_is_the_one_with_rank_0(monkeypatch, name):
    for other in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"):
        monkeypatch.delenv(other, raising=False)
    assert is_main_process()
    monkeypatch.setenv(name, "1")
    assert not is_main_process()
    monkeypatch.setenv(name, "0")
    assert is_main_process()


def test_a_terminal_obeys_nothing_that_is_told(tmp_path, capsys):
    tell(f"one{HOSTILE}\ntwo")
    with warnings_as_lines():
        shown = [warnings.formatwarning(HOSTILE, kind, "file", 1) for kind in (UserWarning, ResourceWarning)]
    assert [text.count(SHOWN) for text in shown] == [1, 1]
    assert main(["report", str(tmp_path / HOSTILE)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"rld: one{SHOWN}\ntwo\n")
    assert printed.count(SHOWN) == 2
    assert not set(HOSTILE) - set("]0;ab2Jc") & set(printed)


def test_a_console_colours_and_moves_but_obeys_no_text(capsys):
    console = SafeConsole(force_terminal=True, width=150)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(Text(HOSTILE, style="red"))
    with Live(table, console=console, auto_refresh=False):
        console.print(HOSTILE, style="green")
    printed = capsys.readouterr().out
    assert "\x1b[32m" in printed and "\x1b[?25l" in printed
    assert "\x1b]" not in printed
    assert not {"\x07", "\x9b", "\u202e", "\u2066", "\x7f"} & set(printed)


def test_whatever_rld_prints_goes_through_what_shows_control_characters():
    """A `print` shows a constant text, or what `visible` returned; consoles are of the safe class."""
    wrong = []
    for path in Path(rld.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            is_visible = name == "print" and "visible(" in ast.unparse(node)
            is_constant = name == "print" and all(isinstance(value, ast.Constant) for value in node.args)
            if name == "Console" or (name == "print" and not is_visible and not is_constant):
                wrong.append(f"{path}:{node.lineno}")
    assert wrong == []
