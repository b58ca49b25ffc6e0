"""List the recipes and components that ship with `rld` by kind and name, and copy shipped recipes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from rld.controllers import AnyController
from rld.data.formats import FORMATS
from rld.errors import LibraryError
from rld.losses.combination import AnyCombination
from rld.losses.divergences import AnyDivergence
from rld.losses.features import AnyFeature
from rld.losses.token_weights import AnyTokenWeights
from rld.recipe import registry
from rld.recipe.document import RecipeDocument, walk
from rld.recipe.stages import AnyStage
from rld.utils.files import write_bytes
from rld.utils.options import kinds_of
from rld.utils.suggestions import hint

_UNIONS: dict[str, Any] = {
    "controllers": AnyController,
    "divergences": AnyDivergence,
    "combinations": AnyCombination,
    "token_weights": AnyTokenWeights,
    "features": AnyFeature,
    "stages": AnyStage,
}

_COPIED = (".py", *FORMATS)

KINDS = ["recipes", "accelerate", "rewards", "curricula", *_UNIONS]


def names(kind: str) -> dict[str, str]:
    """Return the shipped names of a kind, as written in a recipe, with the first line of each description."""
    if kind not in _UNIONS:
        return registry.names(kind)
    return {name: _first_line(member) for name, member in kinds_of(_UNIONS[kind]).items()}


def _first_line(member: type) -> str:
    return (inspect.getdoc(member) or "").partition("\n")[0]


def copy(name: str, to: Path, force: bool = False) -> list[Path]:
    """Copy a shipped recipe and the files that it names, or a file for `accelerate launch`, into the folder `to`.

    Returns:
        The copies.

    Raises:
        LibraryError: no such recipe, or a file would be overwritten and `force` is False; nothing is copied then.
    """
    shipped = registry.files("recipes") | registry.files("accelerate")
    if name not in shipped:
        raise LibraryError(f"no recipe called {name!r} ships{hint(name, shipped)}")
    source = shipped[name]
    copies = {path: to / path.relative_to(source.parent) for path in [source, *_files_named_in(source)]}
    conflicts = [str(copy) for copy in copies.values() if copy.exists()]
    if conflicts and not force:
        raise LibraryError(f"{', '.join(conflicts)} exists already; add --force to overwrite")
    for path, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(copy, path.read_bytes())
    return list(copies.values())


def _files_named_in(recipe: Path) -> list[Path]:
    """Return the files beside a recipe that it names, such as `tasks.py` for `./tasks.py:reverse`, or whose folder."""
    references = [value.partition(":")[0] for _, value in walk(RecipeDocument(recipe).tree) if isinstance(value, str)]
    names = list(dict.fromkeys(references))
    files = [recipe.parent / name for name in names if name.endswith(_COPIED)]
    folders = [recipe.parent / name for name in names if name.startswith("./") and (recipe.parent / name).is_dir()]
    files += [file for folder in folders for file in sorted(folder.iterdir())]
    return [file for file in files if file.is_file()]
