"""Rewards for programs: the unit tests of the row, run in a sandbox."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rld.utils.sandbox import run_tests

from . import text_of

_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


def unit_tests(
    completions: list[Any],
    entry: list[Any],
    *,
    column: str = "tests",
    seconds: float = 5.0,
    memory_mb: int = 512,
    workers: int = 2,
    **_: Any,
) -> list[float | None]:
    """Give 1 to a program that passes the row's tests within the limits; otherwise 0. A row without tests gets None.

    The program is the last fenced block of the completion, or all of it if there is none. It runs in a sandbox, with
    Python's standard library, without network and without files.

    Args:
        column: Column of the row with its tests: Python source that raises an exception if the program is wrong, such
            as `assert add(1, 2) == 3`.
        seconds: Limit of a program's time.
        memory_mb: Limit of a program's memory in MiB.
        workers: Programs that run at the same time.
    """

    def score(completion: Any, row: Any) -> float | None:
        tests = row.get(column) if isinstance(row, dict) else None
        if tests is None:
            return None
        outcome = run_tests(program_in(text_of(completion)), str(tests), seconds=seconds, memory_mb=memory_mb)
        return float(outcome.status == "passed")

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(score, completions, entry))


def program_in(text: str) -> str:
    """Return the last fenced block of a text, or the text itself if it has none."""
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks else text
