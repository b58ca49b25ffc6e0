"""Read definitions and signatures from Python source without running it.

A recipe names functions, classes and options of libraries that take seconds to import. A check needs only
the names that a file defines and the arguments they accept, which its syntax tree shows in milliseconds.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from rld.errors import LibraryError

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Signature:
    """The keyword arguments that a function or class takes."""

    parameters: tuple[str, ...]
    required: tuple[str, ...]
    """Those of `parameters` without a default."""
    any_name: bool
    """It takes `**keywords`."""
    annotations: Mapping[str, ast.expr] = field(default_factory=dict)
    """The types of those of `parameters` that have one."""
    switches: frozenset[str] = frozenset()
    """Those of `parameters` whose default is True or False."""


def parse(path: Path) -> ast.Module:
    """Return a file's syntax tree, which is not to be changed: a file that is asked for again is parsed once.

    Raises:
        LibraryError: it is not valid Python; names the line.
    """
    return _parsed(path, path.read_bytes())


@lru_cache(maxsize=64)
def _parsed(path: Path, source: bytes) -> ast.Module:
    try:
        return ast.parse(source, str(path))
    except SyntaxError as error:
        raise LibraryError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    except ValueError as error:  # null bytes, in Python before 3.12
        raise LibraryError(f"{path}: not valid Python: {error}") from error
    except (RecursionError, MemoryError) as error:  # of Python's parser, which has a stack of its own
        raise LibraryError(f"{path}: not valid Python: it is nested too deep") from error


def find(module: str) -> Path | None:
    """Return the file of an installed module such as `package.part`, or None; nothing is imported."""
    if not all(part.isidentifier() for part in module.split(".")):  # such as "/", which would lead out of the package
        return None
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # such as __main__, which has no spec
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for place in spec.submodule_search_locations or ():
        for path in (Path(place, *rest).with_suffix(".py"), Path(place, *rest, "__init__.py")):
            if os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
                return path
    return None


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return the names at a module's top level, also inside `if`, `try` or `with`, and the statements defining them.

    The name `*` stands for a star import: the module then has names that its source does not show.
    """
    return {name: node for node in _top_level(tree.body) for name in _names(node)}


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _top_level([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Import() | ast.ImportFrom():
            return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
        case ast.Assign():
            return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def class_of(tree: ast.Module, name: str) -> ast.ClassDef | None:
    """Return the class that a module defines under a name, even if it wraps it and assigns the name again."""
    return next((node for node in _top_level(tree.body) if isinstance(node, ast.ClassDef) and node.name == name), None)


def summary(node: ast.AST) -> str:
    """Return the first line of a definition's docstring, "" when it has none."""
    text = ast.get_docstring(node) if isinstance(node, (*DEFINITIONS, ast.Module)) else None
    return text.splitlines()[0] if text else ""


def signature(tree: ast.Module, name: str, skip: int) -> Signature | None:
    """Return the parameters of the function or class `name` after the first `skip`, `self` not counted.

    Returns None where the source does not show them: for a name that is imported or assigned, or a class whose
    parameters are defined in another file.
    """
    node = definitions(tree).get(name)
    if isinstance(node, ast.ClassDef):
        init = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
        if init is None or init.decorator_list:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            return signature(tree, bases[0], skip) if bases not in ([], [name]) and not node.decorator_list else None
        return _signature(init.args, skip + 1)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.decorator_list:
        return _signature(node.args, skip)
    return None


def _signature(arguments: ast.arguments, skip: int) -> Signature:
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    required = positional[: len(positional) - len(arguments.defaults)]
    keyword = [a.arg for a in arguments.kwonlyargs]
    required += [name for name, value in zip(keyword, arguments.kw_defaults, strict=True) if value is None]
    parameters = positional[max(skip, len(arguments.posonlyargs)) :] + keyword
    all_arguments = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    types = {argument.arg: argument.annotation for argument in all_arguments if argument.annotation is not None}
    defaults = [*zip(positional[::-1], arguments.defaults[::-1], strict=False)]
    defaults += [(name, value) for name, value in zip(keyword, arguments.kw_defaults, strict=True) if value is not None]
    switches = frozenset(
        name for name, value in defaults if isinstance(value, ast.Constant) and isinstance(value.value, bool)
    )
    required_parameters = tuple(name for name in parameters if name in required)
    return Signature(tuple(parameters), required_parameters, arguments.kwarg is not None, types, switches)


def argument_names(node: ast.FunctionDef) -> list[str]:
    """Return the names of a function's arguments."""
    return [argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)]


def fields(tree: ast.Module, class_name: str) -> dict[str, ast.AnnAssign]:
    """Return the annotated fields in the body of a class, inherited ones excluded; empty without such a class."""
    node = class_of(tree, class_name)
    return {
        item.target.id: item
        for item in (node.body if node else [])
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and not ast.unparse(item.annotation).startswith("ClassVar")
    }
