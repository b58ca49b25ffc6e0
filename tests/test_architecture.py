"""The house: packages import in one direction, light modules stay light, and every shipped recipe is valid."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from rld.recipe import registry
from rld.recipe.reading import read_recipe

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rld"
ALLOWED = {  # the packages that each package may import, beside itself and the modules that are free to all
    "utils": "",
    "models": "",
    "losses": "models",
    "controllers": "",
    "recipe": "losses controllers data.formats data.row_kinds evaluation.scores",
    "data": "recipe",
    "teachers": "models losses",
    "rollout": "models losses controllers teachers",
    "evaluation": "models recipe rollout",
    "trainer": "models losses controllers data teachers rollout",
    "reporting": "recipe",
    "pipeline": "models losses controllers recipe data teachers rollout evaluation trainer reporting",
    "ablation": "recipe controllers reporting",
    "proposal": "recipe data.formats data.items data.row_kinds models",
    "cli": "arguments recipe reporting pipeline ablation teachers proposal",
    "arguments": "recipe",
    "rewards": "models.heads models.loading models.prompting",
    "curricula": "",
}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FREE = {"errors", "types", "utils"}
LIGHT = """
    pipeline.recipe_check arguments
    cli errors types utils.options utils.files utils.suggestions utils.flops utils.run_folder losses.divergences
    losses.combination losses.token_weights losses.features controllers recipe.reading recipe.schema reporting.overview
""".split()  # noqa: SIM905 - a list this long is easier to read as text
HEAVY = {"torch", "transformers", "trl", "datasets", "peft", "numpy", "accelerate", "reasoning_gym"}
MAY_IMPORT_TRL = ["trainer.", "models.heads", "pipeline.sft", "pipeline.run"]
RECIPES = sorted(registry.files("recipes").values())
LIMITS = {"module": 350, "function": 40, "parameters": 8, "tuples": 1}
"""Lines of a module, lines of a function without its docstring, its parameters, and `*tuple`s in one call."""
PARTICIPLES = """
    asked begun chosen done drawn found gained given gone held judged kept known lost made missed named needed owned
    paid passed placed refused said seen shown spent stored taken thrown told tried wanted
""".split()  # noqa: SIM905 - a list this long is easier to read as text
"""Words that name no variable, argument or function: a name is a noun of what it holds."""
PRONOUNS = {"again", "both", "each", "every", "few", "many", "more", "one", "own", "same", "some", "there"}
"""Words that name none either: they tell nothing of what it holds."""
EXCEPTIONS = {  # what is above a limit, how far at most, and why; the list may only shrink
    "parameters trainer.rld_trainer RLDTrainer.__init__": (15, "it takes the arguments of TRL's trainer too"),
}


def module_name(path: Path) -> str:
    """Return a module's dotted name below `rld`."""
    name = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).with_suffix("").as_posix()
    return name.replace("/", ".").removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "metrics"}
PLUGINS = {module_name(path): path for kind in ("rewards", "curricula") for path in sorted((ROOT / kind).glob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of rld that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "rld":
            base = node.module.removeprefix("rld").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield inner if inner in MODULES else base
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("rld.") for alias in node.names if alias.name.startswith("rld."))


@pytest.mark.parametrize("name", [*MODULES, *PLUGINS])
def test_a_package_imports_only_what_the_table_allows(name):
    package = name.split(".")[0]
    if package in ("", "__init__", "__main__"):
        return
    if package in FREE - {"utils"}:
        allowed: set[str] = FREE - {"utils"}
    else:
        allowed = {package, *FREE, *ALLOWED[package].split()}
    others = [other for other in imported({**MODULES, **PLUGINS}[name]) if other]
    assert [other for other in others if not any(f"{other}.".startswith(f"{name}.") for name in allowed)] == []


def test_no_two_modules_import_each_other():
    graph = {name: set(imported(path)) - {name, ""} for name, path in MODULES.items() if name not in ("", "__init__")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def measured(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield what is limited in a file: the limit's name, where (a module, or a function in it), and the number."""
    text, module = path.read_text(), module_name(path)
    yield "module", module, len(text.splitlines())
    pending: list[tuple[ast.AST, str]] = [(ast.parse(text), "")]
    while pending:
        parent, name = pending.pop()
        for node in ast.iter_child_nodes(parent):
            inner = f"{name}.{node.name}".removeprefix(".") if isinstance(node, DEFINITIONS) else name
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = node.body[0] if ast.get_docstring(node) is not None else None
                num_doc_lines = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
                yield "function", f"{module} {inner}", (node.end_lineno or 0) - node.lineno + 1 - num_doc_lines
                yield "parameters", f"{module} {inner}", num_parameters(node.args, is_plugin=module in PLUGINS)
            elif isinstance(node, ast.Call):
                yield "tuples", f"{module} {inner}", sum(isinstance(value, ast.Starred) for value in node.args)
            pending.append((node, inner))


def num_parameters(args: ast.arguments, *, is_plugin: bool) -> int:
    """Return how many arguments a function takes, `*rest` and `**options` as one each, without `self` or `cls`.

    The keyword-only arguments of a reward or a curriculum are its options in a recipe, and not counted.
    """
    options = [] if is_plugin else args.kwonlyargs
    every = [*args.posonlyargs, *args.args, *options, *filter(None, (args.vararg, args.kwarg))]
    return sum(argument.arg not in ("self", "cls") for argument in every)


def test_modules_and_functions_are_small():
    above: dict[str, int] = {}
    for path in [*PACKAGE.rglob("*.py"), *PLUGINS.values()]:
        for limit, place, number in measured(path):
            if number > LIMITS[limit]:
                above[f"{limit} {place}"] = max(number, above.get(f"{limit} {place}", 0))
    allowed = {place: number for place, (number, _) in EXCEPTIONS.items()}
    assert {place: number for place, number in above.items() if number > allowed.get(place, 0)} == {}
    assert [place for place in EXCEPTIONS if place not in above] == [], "no longer above its limit: strike it off"


def names(path: Path) -> Iterator[str]:
    """Yield the names of the variables, arguments and functions of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def attributes(path: Path) -> Iterator[str]:
    """Yield the names of the attributes of `self` that the classes of a file assign."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def test_variables_and_functions_are_no_participles_and_no_pronouns():
    pairs = [(module, name) for module, path in {**MODULES, **PLUGINS}.items() for name in names(path)]
    assert [(module, name) for module, name in pairs if name.strip("_") in {*PARTICIPLES, *PRONOUNS}] == []


def test_attributes_are_no_participles():
    """Of attributes, which are read far from where they are assigned, no regular participle is a name either."""

    def is_participle(name: str) -> bool:
        word = re.sub("_[A-Z0-9]+$", "", name).strip("_")  # without the axes of a tensor
        return word in PARTICIPLES or (word.endswith("ed") and "_" not in word and word != "seed")

    pairs = [(module, name) for module, path in {**MODULES, **PLUGINS}.items() for name in attributes(path)]
    assert [(module, name) for module, name in pairs if is_participle(name)] == []


def test_light_modules_import_no_heavy_library():
    code = f"""
import importlib, sys
for name in {LIGHT}:
    importlib.import_module("rld." + name)
    heavy = {HEAVY} & set(sys.modules)
    if heavy:
        sys.exit(f"importing rld.{{name}} imports {{sorted(heavy)}}")
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_trl_is_imported_in_few_places():
    def imports_trl(path: Path) -> bool:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
        names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        return any(name.split(".")[0] == "trl" for name in names)

    importers = [name for name, path in MODULES.items() if imports_trl(path)]
    assert [name for name in importers if not name.startswith(tuple(MAY_IMPORT_TRL))] == []


def test_recipes_ship():
    assert "quickstart" in [path.stem for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_says_what_it_is(path):
    assert read_recipe(path).name == path.stem
    name = path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    assert registry.names("recipes")[name], "its first line should be a comment that says what it does"


RECIPE = """\
name: all-libraries
models: {student: some/model}
skills: {sum: {reasoning_gym: chain_sum, levels: [{min_terms: 2}]}}
stages: [{name: a, kind: sft, student: student, steps: 1, lora: {r: 4}, trainer: {warmup_steps: 2}}]
"""


def test_a_check_of_names_from_every_library_imports_none_but_that_of_its_rows(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code = (
        "import sys; from rld.cli import main; code = main(['check', sys.argv[1]]); "
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'peft'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "recipe.yaml")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
