"""Rewards for programs: the unit tests of the row, run in a sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rld.utils.control_characters import encodable
from rld.utils.sandbox import run_tests

from . import text_of

_MOST_CHARACTERS = 200
"""Of each line of feedback."""

_IN_SYSTEM = re.compile(r"/usr/(?:[^\s'\"()/]+/)*")
"""Folders of the machine that a program in the sandbox sees."""

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
"""What ends a line for Python; `str.splitlines` knows more, such as a form feed."""

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def unit_tests(
    completions: list[Any],
    entry: list[str],
    log_extra: Callable[[str, list[str | None]], None] | None = None,
    *,
    column: str = "tests",
    seconds: float = 5.0,
    memory_mb: int = 512,
    workers: int = 2,
    **_: Any,
) -> list[float | None]:
    """Give 1 to a program that passes the row's tests within the limits; otherwise 0. A row without tests gets None.

    The program is the last fenced block of the completion, or all of it if there is none. It runs in a sandbox, with
    Python's standard library, without network and without files, and its tests call it from another. Of rows of
    `kind: code_task` it is the last block that defines their `entry_point`; where none does, the completion goes on
    where the prompt's code ends.

    `log_extra` gets the column `feedback`: of each program that does not pass what went wrong first, in a few lines
    without the program's output.

    Args:
        column: Column of the row with its tests: Python source that raises an exception if the program is wrong, such
            as `assert add(1, 2) == 3`.
        seconds: Limit of a program's time.
        memory_mb: Limit of a program's memory, in MiB.
        workers: Programs that run at the same time.
    """

    limits = {"timeout": f"it took more than {seconds:g} seconds", "output": "it wrote too much"}
    limits["memory"] = f"it took more than {memory_mb} MiB of memory"

    def score(completion: Any, row_entry: str) -> tuple[float | None, str | None]:
        task = json.loads(row_entry) if row_entry else {}
        if task.get(column) is None:
            return None, None
        names = {"entry_point": task.get("entry_point") or "", "setup": own_code(task)}
        program, tests = whole_program(text_of(completion), task), str(task[column])
        outcome = run_tests(program, tests, **names, seconds=seconds, memory_mb=memory_mb)
        if outcome.status == "passed":
            return 1.0, None
        if outcome.status in limits:
            return 0.0, f"The program was stopped: {limits[outcome.status]}."
        return 0.0, described(outcome.report, program, tests)

    with ThreadPoolExecutor(workers) as pool:
        pairs = list(pool.map(score, completions, entry))
    if log_extra is not None:
        log_extra("feedback", [text for _, text in pairs])
    return [value for value, _ in pairs]


def described(report: Mapping[str, Any], program: str, tests: str) -> str:
    """Return in words why a program fails its tests.

    Args:
        report: `sandbox.Outcome.report`. The program may say anything in it, so that nothing of it is taken for true.
        program: The program.
        tests: Its tests.
    """
    if not program.strip():
        return "There is no program."
    if not report.get("error"):
        return "The program ended before its tests did."
    error, message = (_IN_SYSTEM.sub("", str(report.get(key) or "")) for key in ("error", "message"))
    lines = [_one_line(f"{error}: {message}" if message else error)]
    for name, source in (("line", program), ("test", tests)):
        number, source_lines = report.get(name), _LINE_BREAK.split(source)
        if type(number) is int and 0 < number <= len(source_lines):
            place = f"In line {number} of the program" if name == "line" else "In the test"
            lines.append(f"{place}: {_one_line(source_lines[number - 1].strip())}")
    return encodable("\n".join(lines))


def _one_line(text: str) -> str:
    """Return a text of bounded length without line breaks, behind which it could look like a line of our own."""
    text = " ".join(text.splitlines())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def own_code(task: Mapping[str, Any]) -> str:
    """Return the code of a row that no completion can change: its `setup`, and what its prompt begins with."""
    prompt = task.get("prompt") or ""
    definition = _start(task)
    return f"{task.get('setup') or ''}\n{prompt[: definition.start()] if definition else ''}"


def whole_program(text: str, task: Mapping[str, Any]) -> str:
    """Return the program that a completion is a part of, without `own_code`.

    Args:
        text: The completion.
        task: The row's `entry_point` and `prompt`, each where there is one. `prompt` is code that the completion goes
            on with.
    """
    name = task.get("entry_point") or ""
    program, definition = program_in(text, name), _start(task)
    if definition is not None and not _definition(name).search(program):  # the completion goes on with the prompt
        return str(task["prompt"])[definition.start() :] + program
    return program


def _start(task: Mapping[str, Any]) -> re.Match[str] | None:
    """Return where the definition of the entry point starts in a row's prompt."""
    name, prompt = task.get("entry_point") or "", task.get("prompt") or ""
    return _definition(name).search(prompt) if name else None


def program_in(text: str, name: str = "") -> str:
    """Return the last fenced block of a text, if one defines `name` the last such one, or the text without a block."""
    blocks = _FENCE.findall(text)
    defining = [block for block in blocks if name and _definition(name).search(block)]
    return str([text, *blocks, *defining][-1])


def _definition(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:(?:async +)?def|class) +{re.escape(name)}\b|^{re.escape(name)} *=", re.MULTILINE)
