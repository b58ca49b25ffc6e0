"""From the names in a recipe to rewards, curricula, generators, files and shipped recipes.

A name is `file:attribute` for what ships in `rewards/` or `curricula/`, `./file.py:attribute` for the user's own file,
or `package.module:attribute` for anything installed. Paths are looked up beside the recipe first, then in the current
folder. `locate` finds a name without importing anything; `load` gives the object.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from rld.errors import LibraryError
from rld.recipe import python_source
from rld.utils.suggestions import hint

Kind = Literal["rewards", "curricula", "generators"]

_SHAPE = {
    "rewards": "./file.py:function, or a shipped one such as answers:exact_match",
    "curricula": "./file.py:Class, or a shipped one such as fixed:Uniform",
    "generators": "./file.py:function, or package.module:function",
}


class Located(NamedTuple):
    """Where a name leads: a file, the attribute in it, and the module to import (None: a user's file)."""

    path: Path
    attribute: str
    module: str | None

    @property
    def shipped(self) -> bool:
        return self.module is not None and self.module.startswith("rld.")


def folder(kind: str) -> Path:
    """Return the folder of what ships: inside the package once installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / kind if (package / kind).is_dir() else package.parent / kind


def files(kind: str) -> dict[str, Path]:
    """Return what ships of a kind, `recipes` included, by name of the file; one in a folder is `folder/name`."""
    place, pattern = folder(kind), "**/*.yaml" if kind == "recipes" else "*.py"
    found = [path for path in sorted(place.glob(pattern)) if not path.stem.startswith("_")]
    return {path.relative_to(place).with_suffix("").as_posix(): path for path in found}


def names(kind: str) -> dict[str, str]:
    """Return the names that ship of a kind, as a recipe writes them, each with the first line of its description."""
    if kind == "recipes":
        return {name: _first_comment(path) for name, path in files(kind).items()}
    found = {}
    for stem, path in files(kind).items():
        tree = python_source.parse(path)
        for name, node in python_source.definitions(tree).items():
            if not name.startswith("_") and _is_part(kind, node):
                found[f"{stem}:{name}"] = python_source.summary(node)
    return found


def _is_part(kind: str, node: ast.stmt) -> bool:
    """Tell a reward by its `completions` and a curriculum by its `next`; the rest of a file is helpers."""
    if kind == "rewards":
        return isinstance(node, ast.FunctionDef) and "completions" in python_source.argument_names(node)
    body = node.body if isinstance(node, ast.ClassDef) else []
    return any(isinstance(item, ast.FunctionDef) and item.name == "next" for item in body)


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def find_path(name: str, relative_to: Path) -> Path | None:
    """Return the file or folder that `name` means: beside the recipe, else in the current folder, else None."""
    name = os.path.expanduser(name)
    return next((path for path in (relative_to / name, Path(name)) if name and os.path.exists(path)), None)


def model_file(model: str, name: str, relative_to: Path) -> Path | None:
    """Return a file of a model's folder, or of a hub id in the local cache; None when it is not on this machine."""
    place = find_path(model, relative_to)
    if place is None:
        from huggingface_hub import try_to_load_from_cache  # takes a quarter of a second, and only hub ids need it

        cached = try_to_load_from_cache(model, name)
        path = Path(cached) if isinstance(cached, str) else None
    else:
        path = place / name
    return path if path is not None and path.is_file() else None


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, given as a path or as a shipped recipe's name.

    Raises:
        LibraryError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = files("recipes")
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise LibraryError(f"{path} is a folder; give the recipe's file")
    beside = {str(path.with_name(near.name)): near for near in path.parent.glob("*.y*ml")}
    if path.stem in shipped and path.suffix:
        raise LibraryError(f"no recipe at {path}; did you mean the shipped one, {path.stem!r}?")
    raise LibraryError(f"no recipe at {path}{hint(name, [*beside, *shipped])}")


def locate(kind: Kind, name: str, relative_to: Path) -> Located:
    """Find what a name in a recipe leads to, without importing anything.

    Args:
        kind: What the name should be.
        name: As the recipe has it.
        relative_to: The recipe's folder.

    Raises:
        LibraryError: no such file, module or attribute, or a file that is not valid Python.
    """
    module, colon, attribute = name.rpartition(":")
    if not colon or not module or not attribute.isidentifier():
        raise LibraryError(f"{name!r} names nothing; write it as {_SHAPE[kind]}")
    place = _own(module, attribute, relative_to) if module.endswith(".py") else _installed(kind, module, attribute)
    known = python_source.definitions(python_source.parse(place.path))
    if attribute not in known and "*" not in known and "__getattr__" not in known:
        public = [key for key, node in known.items() if isinstance(node, python_source.DEFINITIONS) and key[0] != "_"]
        raise LibraryError(f"{module} has no {attribute!r}{hint(attribute, public)}")
    return place


def _own(module: str, attribute: str, relative_to: Path) -> Located:
    path = find_path(module, relative_to)
    if path is None:
        beside = [f"./{near.relative_to(relative_to)}" for near in relative_to.glob("*.py")]
        raise LibraryError(f"no file {module} beside the recipe{hint(module, beside)}")
    return Located(path, attribute, None)


def _installed(kind: Kind, module: str, attribute: str) -> Located:
    shipped = files(kind)
    if module in shipped:
        return Located(shipped[module], attribute, f"rld.{kind}.{module}")
    installed = kind == "generators" or "." in module
    path = python_source.find(module) if installed else None
    if path is None:
        what = "no installed module" if installed else f"none of the shipped {kind} is in a file called"
        raise LibraryError(f"{what} {module!r}{hint(module, shipped)}")
    return Located(path, attribute, module)


def load(kind: Kind, name: str, relative_to: Path) -> Any:
    """Import what a name in a recipe leads to and return it. Arguments and errors are those of `locate`.

    Raises:
        LibraryError: as `locate`; or importing the user's file raised.
    """
    place = locate(kind, name, relative_to)
    module = _run(place.path.resolve()) if place.module is None else importlib.import_module(place.module)
    if place.attribute not in vars(module):
        raise LibraryError(f"{place.path} defines no {place.attribute!r} when it is run")
    return getattr(module, place.attribute)


def takes_model(arguments: Iterable[str]) -> bool:
    """Tell by its arguments a reward that is given a loaded model where the recipe's option `model` names one."""
    return {"model", "tokenizer"} <= set(arguments)


def can_judge(use: str, relative_to: Path) -> bool:
    """Tell whether a reward can be called on any text: it is no asynchronous function, and reads no model.

    Raises:
        LibraryError: there is no such function.
    """
    place = locate("rewards", use, relative_to)
    tree = python_source.parse(place.path)
    if isinstance(python_source.definitions(tree).get(place.attribute), ast.AsyncFunctionDef):
        return False
    signature = python_source.signature(tree, place.attribute, skip=0)
    return signature is None or not takes_model(signature.named)


def _run(path: Path) -> ModuleType:
    """Import a user's file as part of a private package of its folder.

    So a file called like an installed module does no harm, `sys.path` stays as it is, and the files of a folder can
    import each other as `from . import other`.
    """
    package = "_rld_user_" + hashlib.sha256(str(path.parent).encode()).hexdigest()[:12]
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(path.parent)]
    importlib.invalidate_caches()
    try:
        return importlib.import_module(f"{package}.{path.stem}")
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        where = f"{path}:{frames[-1].lineno}" if frames else str(path)
        what = f"{type(error).__name__}: {error}{_advice(error, path)}"
        raise LibraryError(f"{where}: importing it raised {what}") from error


def _advice(error: Exception, path: Path) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and path.with_name(f"{missing}.py").is_file():
        return f"; {missing}.py lies beside it: write `from . import {missing}`"
    return ""
