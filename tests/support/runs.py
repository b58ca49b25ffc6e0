"""What tests of whole runs share: a recipe in a folder, a run of it, one thread, and a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rld.cli import main

COPY_TASKS = """
def copy(rng, *, length):
    word = "".join(rng.choices("abcd", k=length))
    return f"a:{word}=", word

def constant(rng, *, length):
    return "".join(rng.choices("abcd", k=length)) + "=", "d"
"""
"""Generators of tasks that every test may use: to copy a word, and to say `d`, which a few updates teach."""

SHORT = """
name: short
tokenizer: {characters: "ab="}
max_new_tokens: 4
skills: {copy: {generator: "./tasks.py:copy", held_out: 2}}
models: {tiny: {new: llama, config: {hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1}}}
stages:
"""  # noqa: E501 - one line is one key
"""A recipe beside `SHORT_TASKS` that lacks its stages, of which each update takes some milliseconds."""

SHORT_TASKS = """
def copy(rng):
    word = "".join(rng.choices("ab", k=3))
    return word + "=", word
"""


class Killed(BaseException):
    """Stands for SIGKILL: nothing that a run does at its end is done."""


@contextmanager
def single_thread() -> Iterator[None]:
    """Sums depend on how many threads share them, and the runs that are compared must agree to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs the module's tests in a single thread."""
    with single_thread():
        yield


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the module's `RECIPE`, beside its `TASKS` or those of `COPY_TASKS`."""
    tasks: str = getattr(request.module, "TASKS", COPY_TASKS)
    return written(tmp_path_factory.mktemp("recipe"), request.module.RECIPE, tasks)


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    output: Path = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", str(recipe), "--output", str(output)]) == 0
    return output


def written(folder: Path, recipe: str, tasks: str = COPY_TASKS) -> Path:
    """Write a recipe and the file of its generators; return the recipe's path."""
    (folder / "tasks.py").write_text(tasks)
    (folder / "small.yaml").write_text(recipe)
    return folder / "small.yaml"
