"""The house: modules import in one direction, what is light stays light, and every shipped recipe is valid."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rld import library
from rld.reading import read

ROOT = Path(__file__).resolve().parent.parent
# A module imports only from those that stand before it.
ORDER = """
    errors journal hints types
    divergences combine features rule retention beliefs gap directions yoked controllers stages recipe
    source library installed document token_files reserved checks reading
    questions data stream lessons
    compact together taps shortlist heads align packing vocabulary response matching student tokens hosting
    teachers translation panel evaluation payload remote hosted
    prefill rollout checkpoint gate audit replay protection signals steering config sketches compass losses scoring
    stopwatch trainer
    cost overview catalogue curves history charts panels tables stylesheet progress report
    arms jobs comparison outcomes scoreboard ablation
    serving cache keeper models probing changes arguments build pipeline cli __main__
""".split()  # noqa: SIM905 - a list this long is easier to read as text
CONTENT = {"rewards": {"types", "errors", "heads"}, "curricula": {"types", "errors"}}
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def imports(path: Path) -> set[str]:
    """Return the modules of rld that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "rld":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("rld."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rld.")}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "rld").glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_what_stands_before_it(path):
    if path.stem == "__init__":
        return
    assert path.stem in ORDER, f"put {path.stem} into ORDER"
    assert imports(path) <= set(ORDER[: ORDER.index(path.stem)])


@pytest.mark.parametrize("kind", CONTENT)
def test_rewards_and_curricula_know_nothing_of_the_trainer(kind):
    paths = list((ROOT / kind).glob("*.py"))
    assert paths
    for path in paths:
        assert imports(path) <= CONTENT[kind], path


def test_every_folder_with_code_is_packaged():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.removeprefix("rld.").replace(".", "/") for name in setuptools["packages"]}
    assert {str(path.parent.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")} <= packages
    shipped = {Path(pattern).parts[0] for pattern in setuptools["package-data"]["rld"] if pattern.endswith(".py")}
    assert {path.relative_to(ROOT / "rld").parts[0] for path in (ROOT / "rld").glob("*/**/*.py")} <= shipped


def test_no_module_is_longer_than_a_reader_can_hold_in_mind():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "rld").glob("*.py")}
    assert [name for name, length in lengths.items() if length > 400] == []


def test_recipes_ship():
    assert "quickstart" in [path.stem for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_says_what_it_is(path):
    assert read(path).name == path.stem
    name = path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    assert library.names("recipes")[name], "its first line should be a comment that says what it does"


RECIPE = """\
name: all-libraries
models: {student: some/model}
skills: {sum: {reasoning_gym: chain_sum, levels: [{min_terms: 2}]}}
stages: [{name: a, run: sft, model: student, steps: 1, lora: {r: 4}, trainer: {learning_rate: 1e-4, warmup_steps: 2}}]
"""


def test_a_check_of_names_from_every_library_imports_none_of_them(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code = (
        "import sys; from rld.cli import main; code = main(['check', sys.argv[1]]); "
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'peft', 'numpy', 'reasoning_gym'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
