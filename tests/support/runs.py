"""What tests of whole runs share: a recipe in a folder, one thread, and a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


class Killed(BaseException):
    """Stands for SIGKILL: nothing that a run does at its end is done."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them, and the runs that are compared must agree to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(folder: Path, recipe: str, tasks: str) -> Path:
    """Write a recipe and the file of its generators; return the recipe's path."""
    (folder / "tasks.py").write_text(tasks)
    (folder / "small.yaml").write_text(recipe)
    return folder / "small.yaml"
