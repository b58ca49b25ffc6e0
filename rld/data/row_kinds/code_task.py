"""Rows of programming tasks: a prompt, and unit tests that decide whether a program is correct."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from rld.data.items import Item
from rld.data.row_kinds.fields import Fields

NAMES = ("prompt", "tests", "solution", "setup", "entry_point", "level")

VERIFIER = "code:unit_tests"
"""The reward that runs the tests."""


def items(fields: Fields) -> Iterator[Item]:
    """Yield the item of a record; its `entry` has what the reward `code:unit_tests` reads, and all other columns.

    Args:
        fields: `prompt`, a text or the beginning of a program; `tests`, Python source or a list of statements, which
            raise an exception if the program is wrong. Where there are some: `solution`, a program that passes them,
            or the rest of one that begins with the prompt; `setup`, source that runs before the program;
            `entry_point`, the name of the function that is tested. Tests that define a function `check` are that
            function called with the one that is tested, as in HumanEval.

    Raises:
        ValueError: a value is missing, the tests are no Python, or nothing in them can fail.
    """
    prompt, entry_point = fields.text("prompt"), _optional(fields, "entry_point")
    tests, setup = _tests(fields, entry_point), _optional(fields, "setup")
    solution = _optional(fields, "solution")
    task = {"tests": tests, "setup": setup, "entry_point": entry_point}
    if entry_point and re.search(rf"^(async +)?(def|class) +{entry_point}\b", prompt, re.MULTILINE):
        task["prompt"] = prompt
    yield Item(prompt, solution or None, fields.others({key: value for key, value in task.items() if value}))


def _optional(fields: Fields, name: str) -> str:
    """Return a value that is text, "" where it is missing or empty."""
    value = fields.value(name) if name in fields else None
    return "" if value is None or value == "" else fields.text(name)


def _tests(fields: Fields, entry_point: str) -> str:
    """Return the tests as source that a program can be followed by."""
    value = fields.value("tests")
    source = "\n".join(map(str, value)) if isinstance(value, list) else fields.text("tests")
    if entry_point and not entry_point.isidentifier():
        raise ValueError(f"entry_point should be the name of a function, not {entry_point!r:.80}")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:  # null bytes are a ValueError
        raise ValueError(f"tests are not Python: {error}") from error
    except (RecursionError, MemoryError) as error:  # of Python's parser, which has a stack of its own
        raise ValueError("tests are not Python that can be read: they are nested too deep") from error
    if entry_point and any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body):
        source += f"\ncheck({entry_point})"
    elif not any(_may_fail(statement) for statement in tree.body):
        raise ValueError(f"nothing in the tests can fail: asserts or a function `check` are missing in {source!r:.80}")
    return source


def _may_fail(statement: ast.stmt) -> bool:
    """Tell whether a statement may raise an exception on purpose; functions that nothing calls may not."""
    is_definition = isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    return not is_definition and any(
        isinstance(node, (ast.Assert, ast.Raise, ast.Call)) for node in ast.walk(statement)
    )
