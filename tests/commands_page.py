"""Writes docs/commands.md from the arguments of the commands: `python -m tests.commands_page`."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from rld.arguments import _ADDERS
from rld.cli import _COMMANDS

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"

_LINE = 120
"""Characters."""

HEAD = """# Commands

`rld --help` and `rld COMMAND --help` say the same. This page is written by `python -m tests.commands_page`.

Exit codes: 0; 2 for a mistake of the user, told in one line per mistake; 3 where losses or gradients were not finite;
74 where the machine failed, such as its disk; 130 when stopped with Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; 1 where runs
of an ablation failed.
"""


def spelled(action: argparse.Action) -> str:
    """Return an argument as one types it, its value in capitals."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
    value = "" if action.nargs == 0 else action.metavar or choices or action.dest.upper()
    words = " ".join(value) if isinstance(value, tuple) else value
    return " ".join(filter(None, [*action.option_strings, words]))


def used(action: argparse.Action) -> str:
    """Return an argument as it stands in a command line, in brackets where it may be left out."""
    if action.option_strings:
        return spelled(action) if action.required else f"[{spelled(action)}]"
    return {"*": f"[{spelled(action)} ...]", "?": f"[{spelled(action)}]"}.get(str(action.nargs), spelled(action))


def section(command: str) -> str:
    parser = argparse.ArgumentParser(add_help=False)
    if command in _ADDERS:
        _ADDERS[command](parser)
    about = " ".join((_COMMANDS[command].__doc__ or "").split())
    line = " ".join(["rld", command, *map(used, parser._actions)])
    usage = textwrap.wrap(f"`{line}`", _LINE, break_long_words=False, break_on_hyphens=False)
    lines = [f"## {command}", "", about, "", *usage]
    rows = [f"| `{spelled(action)}` | {action.help or ''} |" for action in parser._actions]
    lines += ["", "| argument | what it is |", "|---|---|", *rows] if rows else []
    return "\n".join(lines)


def page() -> str:
    return "\n\n".join([HEAD.strip(), *map(section, _COMMANDS)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
