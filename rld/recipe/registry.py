"""Resolve the names in a recipe to rewards, curricula, generators, files and shipped recipes.

A name is `file:attribute` for what ships in `rewards/` or `curricula/`, `trl:name` for a reward of TRL's,
`./file.py:attribute` for the user's own file, or `package.module:attribute` for anything installed. Paths are looked up
beside the recipe first, then in the current folder. `locate` finds a name's file without importing anything; `load`
returns the object.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rld.errors import LibraryError
from rld.recipe import python_source, trl_rewards, user_code
from rld.utils.files import user_path
from rld.utils.suggestions import hint

Kind = Literal["rewards", "curricula", "generators"]

_SHAPE = {
    "rewards": "./file.py:function, trl:function, or a shipped one such as answers:exact_match",
    "curricula": "./file.py:Class, or a shipped one such as fixed:Uniform",
    "generators": "./file.py:function, or package.module:function",
}


class Located(NamedTuple):
    """The target of a name: a file, the attribute in it, and the module to import (None for a user's file)."""

    path: Path
    attribute: str
    module: str | None

    @property
    def shipped(self) -> bool:
        return self.module is not None and self.module.startswith("rld.")


def folder(kind: str) -> Path:
    """Return the folder of the shipped files of a kind: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / kind if (package / kind).is_dir() else package.parent / kind


def files(kind: str) -> dict[str, Path]:
    """Return the shipped files of a kind, `recipes` included, by file name; one in a folder is `folder/name`.

    The files of the kind `accelerate`, for `accelerate launch`, are in a folder of `recipes`.
    """
    is_yaml = kind in ("recipes", "accelerate")
    place, pattern = (folder("recipes"), "**/*.yaml") if is_yaml else (folder(kind), "*.py")
    paths = [path for path in sorted(place.glob(pattern)) if not path.stem.startswith("_")]
    if is_yaml:
        paths = [path for path in paths if (path.parent.name == "accelerate") == (kind == "accelerate")]
    return {path.relative_to(place).with_suffix("").as_posix(): path for path in paths}


def names(kind: str) -> dict[str, str]:
    """Return the names that ship of a kind, as a recipe writes them, each with the first line of its description."""
    if kind in ("recipes", "accelerate"):
        return {name: _first_comment(path) for name, path in files(kind).items()}
    summaries = {}
    for stem, path in files(kind).items():
        tree = python_source.parse(path)
        for name, node in python_source.definitions(tree).items():
            if not name.startswith("_") and _is_part(kind, node):
                summaries[f"{stem}:{name}"] = python_source.summary(node)
    return summaries


def _is_part(kind: str, node: ast.stmt) -> bool:
    """Return whether a node is a reward (has an argument `completions`) or a curriculum (has a method `next`)."""
    if kind == "rewards":
        return isinstance(node, ast.FunctionDef) and "completions" in python_source.argument_names(node)
    body = node.body if isinstance(node, ast.ClassDef) else []
    return any(isinstance(item, ast.FunctionDef) and item.name == "next" for item in body)


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def find_path(name: str, relative_to: Path) -> Path | None:
    """Return the path of `name` in the recipe's folder, else in the current folder, else None."""
    name = os.path.expanduser(name)
    return next((path for path in (relative_to / name, Path(name)) if name and os.path.exists(path)), None)


def model_file(model: str, name: str, relative_to: Path) -> Path | None:
    """Return a file of a model's folder, or of a hub id in the local cache; None when it is not on this machine."""
    place = find_path(model, relative_to)
    if place is None:
        from huggingface_hub import try_to_load_from_cache  # takes a quarter of a second, and only hub ids need it
        from huggingface_hub.errors import HFValidationError

        try:
            cache_entry = try_to_load_from_cache(model, name)
        except HFValidationError:  # a folder that does not exist
            return None
        path = Path(cache_entry) if isinstance(cache_entry, str) else None
    else:
        path = place / name
    return path if path is not None and path.is_file() else None


def find_recipe(name: str) -> Path:
    """Return the file of a recipe from its path or a shipped recipe's name.

    Raises:
        LibraryError: there is none.
    """
    path = user_path(name)
    if path.is_file():
        return path
    shipped = files("recipes")
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise LibraryError(f"{path} is a folder; give the recipe's file")
    if path.exists():
        raise LibraryError(f"{path} is no regular file; save the recipe in a file, and give that")
    beside = {str(path.with_name(near.name)): near for near in path.parent.glob("*.y*ml")}
    if path.stem in shipped and path.suffix:
        raise LibraryError(f"no recipe at {path}; did you mean the shipped one, {path.stem!r}?")
    raise LibraryError(f"no recipe at {path}{hint(name, [*beside, *shipped])}")


def locate(kind: Kind, name: str, relative_to: Path) -> Located:
    """Return the file, attribute and module that a name in a recipe refers to, without importing anything.

    Args:
        kind: The kind of object that the name should refer to.
        name: The name as written in the recipe.
        relative_to: The recipe's folder.

    Raises:
        LibraryError: no such file, module or attribute, a file that is not valid Python, or one that imports a name
            that is both installed and beside it.
    """
    module, colon, attribute = name.rpartition(":")
    if not colon or not module or not attribute.isidentifier():
        raise LibraryError(f"{name!r} names nothing; write it as {_SHAPE[kind]}")
    place = (
        _beside_recipe(module, attribute, relative_to)
        if module.endswith(".py")
        else _installed(kind, module, attribute)
    )
    nodes = python_source.definitions(python_source.parse(place.path))
    _require_packages(place, name)
    if place.module is None:
        user_code.require_distinct_imports(place.path)
    if attribute not in nodes and "*" not in nodes and "__getattr__" not in nodes:
        public = [key for key, node in nodes.items() if isinstance(node, python_source.DEFINITIONS) and key[0] != "_"]
        raise LibraryError(f"{module} has no {attribute!r}{hint(attribute, public)}")
    return place


def _beside_recipe(module: str, attribute: str, relative_to: Path) -> Located:
    path = find_path(module, relative_to)
    if path is None:
        beside = [f"./{near.relative_to(relative_to)}" for near in relative_to.glob("*.py")]
        raise LibraryError(f"no file {module} beside the recipe{hint(module, beside)}")
    return Located(path, attribute, None)


def _installed(kind: Kind, module: str, attribute: str) -> Located:
    if kind == "rewards" and trl_rewards.names_module(module):
        return Located(trl_rewards.locate(attribute), attribute, trl_rewards.MODULE)
    shipped = files(kind)
    if module in shipped:
        return Located(shipped[module], attribute, f"rld.{kind}.{module}")
    installed = kind == "generators" or "." in module
    path = python_source.find(module) if installed else None
    if path is None:
        problem = "no installed module" if installed else f"none of the shipped {kind} is in a file called"
        raise LibraryError(f"{problem} {module!r}{hint(module, shipped)}")
    return Located(path, attribute, module)


def _require_packages(place: Located, name: str) -> None:
    """Refuse a name that needs a package which is not installed.

    Raises:
        LibraryError: it does.
    """
    is_own = place.module == "rld.rewards.answers" and place.attribute == "math_verify"
    if (is_own or trl_rewards.needs_math_verify(place.path)) and python_source.find("math_verify") is None:
        raise LibraryError(f"{name} needs math-verify; install it with: pip install -e '.[math]', in a clone of rld")


def load(kind: Kind, name: str, relative_to: Path) -> Any:
    """Import and return the object that a name in a recipe refers to. The arguments are those of `locate`.

    Raises:
        LibraryError: as `locate`; or importing the user's file raised.
    """
    place = locate(kind, name, relative_to)
    module = user_code.run(place.path.resolve()) if place.module is None else importlib.import_module(place.module)
    try:
        return getattr(module, place.attribute)  # which a module may make when it is first used
    except AttributeError as error:
        raise LibraryError(f"{place.path} defines no {place.attribute!r} when it is run") from error


def is_adapter(name: str, relative_to: Path) -> bool:
    """Tell whether a folder or hub id on this machine is a PEFT adapter and no model."""
    adapter, model = (model_file(name, file, relative_to) for file in ("adapter_config.json", "config.json"))
    return adapter is not None and model is None


def takes_model(arguments: Iterable[str]) -> bool:
    """Return whether a reward's arguments include the loaded model that the recipe's option `model` names."""
    return {"model", "tokenizer"} <= set(arguments)


def can_judge(use: str, relative_to: Path) -> bool:
    """Return whether a reward can be called on any text: it is not asynchronous and takes no model.

    Raises:
        LibraryError: there is no such function, or importing its file raised where its source does not show this.
    """
    place = locate("rewards", use, relative_to)
    tree = python_source.parse(place.path)
    node = python_source.definitions(tree).get(place.attribute)
    if isinstance(node, ast.AsyncFunctionDef):
        return False
    signature = python_source.signature(tree, place.attribute, skip=0)
    if signature is not None:
        return not takes_model(signature.parameters)
    reward = load("rewards", use, relative_to)  # only when it runs does it show what is imported, assigned or decorated
    if not callable(reward):
        return True  # whatever calls it says so
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
        return False
    try:
        return not takes_model(inspect.signature(reward).parameters)
    except ValueError:  # it is written in C
        return True
