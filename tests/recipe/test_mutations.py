"""Whatever stands in a recipe's file or override, reading it ends in a recipe or in an error of the user."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from rld.data.skill_rows import skill_rows
from rld.errors import RldError
from rld.pipeline.plain_recipe import reason_to_ask_libraries
from rld.recipe.document import value_at, walk
from rld.recipe.reading import read_recipe
from rld.recipe.registry import files
from rld.reporting.overview import overview

ROOT = Path(__file__).parents[2]
RECIPES = sorted(files("recipes").values())

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**32, 2**63, 10**400, -(10**20), 0.5, -0.5, 1e308, 5e-324),
    *("", " ", "a", "x" * 5000, "../..", "./none.py:f", "answers:exact_match", "a:b:c", "none", "\ud800", "{question}"),
    *(
        [],
        [[]],
        [1, "a"],
        [None],
        [{}],
        ["reverse", 1],
        [["reverse"]],
        {},
        {"a": 1},
        {1: 2},
        {"kind": 3},
        {"kind": "sft"},
    ),
    *({"use": 1}, {"new": 1}, {"new": "llama", "config": []}, {"path": "\0"}, {"url": "http://a b"}, {True: {None: 1}}),
]
TEXTS = [
    "&a *a",
    "!!int x",
    "!!bool x",
    "<<: 5",
    "? [a]",
    "\t",
    "\x07",
    "%",
    "!!set {a}",
    "[" * 99,
    "- ",
    ": ",
    "\ufeff",
    "|",
]


def mutated(text: str, tree: Any, rng: random.Random) -> str:
    """Return a recipe's text with one to three random changes of its values, keys or characters."""
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 3)):
            i, j = rng.randrange(len(text)), rng.randint(0, 8)
            text = text[:i] + rng.choice([*TEXTS, text[i : i + j] * 2, ""]) + text[i + j :]
        return text
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        loc = rng.choice([loc for loc, _ in walk(tree) if loc])
        parent, key = value_at(tree, loc[:-1]), loc[-1]
        change, value = rng.randrange(4), copy.deepcopy(rng.choice(VALUES))
        if change == 0:
            del parent[key]
        elif change == 1 and isinstance(parent, dict):
            other = rng.choice([loc[-1] for loc, _ in walk(tree) if loc and isinstance(loc[-1], str)])
            parent[rng.choice([other, f"{key}s", 7])] = parent.pop(key)
        else:
            parent[key] = value
    return yaml.safe_dump(tree, allow_unicode=False)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_mutated_recipe_is_read_or_refused(path, tmp_path):
    for source in path.parent.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    rng, target, text = random.Random(path.stem), tmp_path / "recipe.yaml", path.read_text()
    tree, num_refused = yaml.safe_load(text), 0
    locs = [".".join(map(str, loc)) for loc, _ in walk(tree)]
    for i in range(27):
        target.write_text(mutated(text, tree, rng), encoding="utf-8")
        overrides = [f"{rng.choice(locs)}={rng.choice(TEXTS)}"]
        try:
            recipe = read_recipe(target, overrides if i % 5 == 0 else [])
            Console(quiet=True).print(overview(recipe, tmp_path))
            if i % 9 == 0:  # which opens data and imports files
                reason_to_ask_libraries(recipe, target, skill_rows(recipe, tmp_path))
        except RldError as error:
            num_refused += 1
            assert all(len(line) < 1000 for line in str(error).splitlines())
    assert num_refused > 10
