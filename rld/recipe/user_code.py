"""Import a user's file, and list the files beside it that it imports.

A user's file is a submodule of a private package that stands for its folder, so a file with the name of an installed
module does not shadow it, and `sys.path` is unchanged. Inside such files `import helper` finds `helper.py`, or the
package `helper`, in the folder of the user's file, as it does for a script; `from . import helper` does as well.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import importlib
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from rld.errors import LibraryError
from rld.recipe import python_source
from rld.utils.user_calls import IMPORT_SECONDS, action, user_code

_PREFIX = "_rld_user_"
"""First part of the names of the private packages."""


def run(path: Path) -> ModuleType:
    """Import a user's file.

    Raises:
        LibraryError: it raises, ends the process or does not return; names the line.
    """
    package = _package(path.parent)
    importlib.invalidate_caches()
    try:
        with user_code(IMPORT_SECONDS):
            return importlib.import_module(f"{package}.{path.stem}")
    except LibraryError:
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        where = f"{path}:{frames[-1].lineno}" if frames else str(path)
        advice = "; what it does as a script belongs under `if __name__ == '__main__':`" if _exits(error) else ""
        raise LibraryError(f"{where}: importing it {action(error)}{advice}") from error


def sources(path: Path) -> list[Path]:
    """Return the files beside a user's file that it imports, directly or through each other, sorted; not itself.

    They are read off the source code, so imports inside functions are among them.

    Raises:
        LibraryError: one of them is not valid Python, or imports what `require_distinct_imports` refuses.
    """
    path = path.resolve()
    pending, imported = [path], set[Path]()
    while pending:
        file = pending.pop()
        for other in _imported_files(file, path.parent):
            if other not in imported and other != path:
                imported.add(other)
                pending.append(other)
    return sorted(imported)


def require_distinct_imports(path: Path) -> None:
    """Refuse imports of a name that both a file beside a user's file and an installed module have.

    Raises:
        LibraryError: the user's file, or one beside it that it imports, has such an import; names the line.
    """
    path = path.resolve()
    for file in [path, *sources(path)]:
        for node, name in _absolute_imports(python_source.parse(file)):
            _require_distinct(name, path.parent, f"{file}:{node.lineno}")


# -- import --------------------------------------------------------------------------------------------------------


def _package(folder: Path) -> str:
    """Return the name of the private package that stands for a folder."""
    name = _PREFIX + hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    if name not in sys.modules:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    return name


class _Finder(MetaPathFinder):
    """Finds the modules of the private packages."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(_PREFIX):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Runs a module in which `import name` looks into the folder of the private package first."""

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        import_name = functools.partial(_import, package, Path(sys.modules[package].__path__[0]))
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": import_name}
        super().exec_module(module)


def _import(
    package: str,
    folder: Path,
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Take the place of `__import__` in a user's module."""
    top = name.partition(".")[0]
    if level or _module_in(folder, top) is None:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    _require_distinct(top, folder, f"{(globals or {}).get('__file__')}")
    return builtins.__import__(name, {"__package__": package, "__name__": package}, None, fromlist or (), 1)


def _module_in(folder: Path, name: str) -> Path | None:
    """Return the file or the folder of the module `name` in a folder; None if there is none."""
    file, package = folder / f"{name}.py", folder / name
    if (package / "__init__.py").is_file():
        return package
    if file.is_file():
        return file
    # a folder of Python files without __init__.py; an installed module goes before it, as in Python
    return package if any(package.glob("*.py")) and not _is_installed(name) else None


def _require_distinct(name: str, folder: Path, where: str) -> None:
    beside = _module_in(folder, name)
    if beside is not None and _is_installed(name):
        fix = f"rename {beside.name}, or write `from . import {name}` if you mean it"
        raise LibraryError(f"{where}: `import {name}` means an installed module or {beside.name} beside it: {fix}")


@functools.cache
def _is_installed(name: str) -> bool:
    """Return whether a module is Python's or in the folder of installed packages; nothing is imported."""
    if name in sys.stdlib_module_names:
        return True
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    spec = PathFinder.find_spec(name, sorted(places))
    return spec is not None and spec.origin is not None


def _exits(error: Exception) -> bool:
    return action(error).startswith("called sys.exit")


# -- source code -----------------------------------------------------------------------------------------------------


def _absolute_imports(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Yield the imports in a file, anywhere in it, with the first part of the imported name."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node, alias.name.partition(".")[0]) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node, module.partition(".")[0]


def _imported_files(file: Path, folder: Path) -> Iterator[Path]:
    """Yield the files in a folder, or in its packages, that a file imports."""
    for node in ast.walk(python_source.parse(file)):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield from _files(folder, alias.name.split("."))
            case ast.ImportFrom(module=module, names=names, level=level):
                start = folder if level == 0 else file.parents[level - 1]
                parts = module.split(".") if module else []
                if start.is_relative_to(folder):
                    for alias in names:
                        yield from _files(start, [*parts, alias.name])


def _files(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield the files that are run when a dotted name in a folder is imported; its last part may be an attribute."""
    for part in parts:
        module = _module_in(folder, part)
        if module is None:
            return
        if module.is_file():
            yield module.resolve()
            return
        if (module / "__init__.py").is_file():
            yield (module / "__init__.py").resolve()
        folder = module
