"""reasoning-gym is optional: only what uses its tasks needs it, and says which extra installs it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
from rld.rewards.reasoning import _scorer

from rld.cli import main
from rld.errors import LibraryError
from rld.recipe import registry
from rld.utils import puzzles
from tests.recipe_page import SMALL

INSTALL = "pip install -e '.[puzzles]'"


@pytest.fixture
def without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_recipe_with_its_tasks_is_refused_in_one_line(command, tmp_path, monkeypatch, capsys, without_the_library):
    monkeypatch.chdir(tmp_path)
    skill = re.search(r"reverse: (.*)", SMALL)[1]
    Path("puzzle.yaml").write_text(SMALL.replace(skill, "{reasoning_gym: chain_sum}"))
    line = next(i for i, text in enumerate(Path("puzzle.yaml").read_text().splitlines(), 1) if "chain_sum" in text)
    assert main([command, "puzzle.yaml"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"rld: puzzle.yaml:{line}: skills.reverse.reasoning_gym: reasoning_gym needs the package reasoning-gym; "
        f"install it with: {INSTALL}, in a clone of rld"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["puzzle.yaml"]


def test_a_recipe_without_its_tasks_is_valid(tmp_path, capsys, without_the_library):
    (tmp_path / "small.yaml").write_text(SMALL)
    assert main(["check", str(tmp_path / "small.yaml")]) == 0


def test_a_verifier_names_the_reward_and_the_extra(without_the_library):
    _scorer.cache_clear()
    with pytest.raises(LibraryError, match=re.escape(f"reasoning:exact_credit {puzzles.NEEDS}")):
        _scorer("chain_sum", "{}")


def test_it_is_imported_in_one_place():
    names = ("rld", "rld.rewards", "rld.curricula", "rld.recipes")
    folders = [Path(importlib.import_module(name).__path__[0]).resolve() for name in names]
    files = {path for folder in folders for path in folder.rglob("*.py")}  # an installed rld holds the other folders
    importing = re.compile(r"^\s*(import|from) reasoning_gym\b", re.MULTILINE)
    importers = [path.name for path in files if importing.search(path.read_text())]
    assert importers == ["puzzles.py"]


def test_shipped_recipes_with_its_tasks_say_so():
    users = {name: path.read_text() for name, path in registry.files("recipes").items()}
    users = {name: text for name, text in users.items() if "reasoning_gym:" in text}
    assert users
    assert [name for name, text in users.items() if INSTALL not in text] == []
