"""A recipe's YAML: its values, where each was written, and the command line's overrides.

This module does not know a recipe's schema, except that a controller may be written as its kind alone; `reading.py`
validates the schema, `yaml_values.py` has the dialect of YAML.
"""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import yaml

from rld.errors import RecipeError
from rld.recipe import cascade, yaml_values
from rld.utils import secrets
from rld.utils.control_characters import has_surrogate
from rld.utils.os_errors import is_system_failure
from rld.utils.suggestions import hint

Loc: TypeAlias = tuple[Any, ...]
"""The keys and indices that lead from the top of a recipe to a value."""

_LONGEST = 400  # maximum characters of a problem's text, which may quote a long value

_MAX_BYTES = 4_000_000  # of a recipe's file

_MAX_NUMBER = (1 << 63) - 1


class RecipeProblem(NamedTuple):
    """One mistake: the location of the value and the message."""

    loc: Loc
    text: str


_YAML_MENDS = {
    r"'\\t'": "indent by spaces, not by tabs",
    "end of stream|scanning a quoted": "a quotation mark or a bracket is not closed",
    "',' or": "put quotation marks around a text that has braces, brackets, commas or colons",
    "block end|mapping values are not allowed|could not find expected ':'": (
        "keys of one mapping begin in the same column, and a space follows a colon"
    ),
}
"""What mends a file that is no YAML, by a pattern of the parser's message."""


def _mend_of_yaml(error: yaml.MarkedYAMLError) -> str:
    message = f"{error.context} {error.problem}"
    mend = next((f"; {mend}" for pattern, mend in _YAML_MENDS.items() if re.search(pattern, message)), "")
    return f" (in what begins on line {error.context_mark.line + 1}){mend}" if mend and error.context_mark else mend


class RecipeDocument:
    """The values of a recipe after the command line's overrides.

    Args:
        path: The recipe's file.
        overrides: Such as `rollout.temperature=0.7`; an item of a list is addressed by its index or its `name`.
        folder: The folder that its paths are relative to. None: the file's.

    Attributes:
        tree: The values.
        problems: Mistakes that do not depend on the schema: overrides of a path that does not exist, keys without a
            value, numbers that are too large or not finite, text with half of a character.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a mapping.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = (), folder: Path | None = None) -> None:
        self.path = path
        self.folder = path.parent if folder is None else folder
        self.problems: list[RecipeProblem] = []
        self._lines: dict[Loc, int] = {}
        self._empty: set[Loc] = set()
        self._overrides: dict[Loc, str] = {}
        self._origins: dict[Loc, Loc] = {}
        self.tree: dict[Any, Any] = self._load()
        of_cascades = [text for text in overrides if text.partition("=")[0].split(".")[2:3] == ["cascade"]]
        for text in of_cascades:
            self._override(text)
        self._expand()
        for text in overrides:
            if text not in of_cascades:
                self._override(text)
        secrets.remember(self.tree)
        for loc, value in walk(self.tree):
            mistake = self._mistake(loc, value)
            if mistake:
                self.problems.append(RecipeProblem(loc, f"{self.label(loc)} {mistake}"))

    def _mistake(self, loc: Loc, value: Any) -> str:
        """Return what makes a value unusable wherever it stands; empty where nothing does."""
        if value is None and loc in self._empty:
            return "has no value; {} stands for defaults, null for none"
        if isinstance(value, float) and not math.isfinite(value):
            return f"should be a finite number, not {value}"
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            return f"should be a number of at most 64 bits, not one of {value.bit_length()}"
        if isinstance(value, str) and not value.isascii() and has_surrogate(value):
            return "should be text, but has half of a character (a surrogate)"
        return ""

    def report(self, problems: list[RecipeProblem]) -> RecipeError:
        """Return the error that lists `problems`, each with its place, in the order of the file."""
        error = RecipeError("\n".join(dict.fromkeys(text for _, text in sorted(map(self._report_entry, problems)))))
        error.is_placed = True
        return error

    def place(self, keys: Loc) -> str:
        """Return where a value stands: file and line, or the override, and its key.

        Args:
            keys: Lead to the value, items of a list by their names; of one that is not written the next above it.
        """
        loc: Loc = ()
        for part in keys:
            items = value_at(self.tree, loc)
            names = [item.get("name") if isinstance(item, dict) else None for item in items or ()]
            loc = (*loc, names.index(part) if isinstance(items, list) and part in names else part)
        return self._report_entry(RecipeProblem(loc, self.label(loc)))[1]

    def label(self, loc: Loc) -> str:
        """Return `loc` as written on the command line; items of a list are addressed by their names.

        What a cascade has written out goes by the keys of the cascade, unless the command line has changed it.
        """
        if any(loc[:length] in self._overrides for length in range(1, len(loc) + 1)):
            return label(self.tree, loc)
        return label(self._tree_as_written, self._where_written(loc))

    def _expand(self) -> None:
        """Write cascades out as stages, which have the lines of the keys from which they come.

        Raises:
            RecipeError: a cascade has a mistake.
        """
        self._tree_as_written, stages = self.tree, self.tree.get("stages")
        expansion = cascade.expand(stages) if isinstance(stages, list) else cascade.Expansion([], {}, [])
        if expansion.mistakes:
            problems = [RecipeProblem(loc, f"{self.label(loc)} {text}") for loc, text in expansion.mistakes]
            raise self.report(problems)
        if not isinstance(stages, list) or expansion.stages == stages:
            return
        self.tree, self._origins = {**self.tree, "stages": expansion.stages}, expansion.origins
        lines, overrides, empty = self._lines, self._overrides, self._empty
        places = [(loc, self._where_written(loc)) for loc, _ in walk(self.tree)]
        self._lines = {loc: lines[place] for loc, place in places if place in lines}
        invalid_overrides = {loc: text for loc, text in overrides.items() if loc == (text,)}
        self._overrides = invalid_overrides | {loc: overrides[place] for loc, place in places if place in overrides}
        self._empty = {loc for loc, place in places if place in empty}

    def _where_written(self, loc: Loc) -> Loc:
        """Return where a value of the tree was written in the file."""
        for length in range(len(loc), 0, -1):
            if loc[:length] in self._origins:
                return (*self._origins[loc[:length]], *loc[length:])
        return loc

    def _report_entry(self, problem: RecipeProblem) -> tuple[int, str]:
        """Return a problem's rank in the report and its text with the nearest recorded line or override."""
        loc, text = problem.loc, textwrap.shorten(problem.text, _LONGEST, placeholder=" ...")
        for length in range(len(loc), -1, -1):
            if loc[:length] in self._overrides:
                override = textwrap.shorten(self._overrides[loc[:length]], _LONGEST, placeholder=" ...")
                return sys.maxsize, f"command line ({override}): {text}"
            if loc[:length] in self._lines:
                line = self._lines[loc[:length]]
                return line, f"{self.path}:{line}: {text}"
        return sys.maxsize, text

    def _load(self) -> dict[Any, Any]:
        try:
            if self.path.stat().st_size > _MAX_BYTES:
                raise RecipeError(f"{self.path}: a recipe has at most {_MAX_BYTES:,} bytes; put data into files")
            root, tree = yaml_values.load(self.path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            if is_system_failure(error):
                raise
            raise RecipeError(f"{self.path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{self.path}: is not text in UTF-8") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.path}:{mark.line + 1}" if mark else str(self.path)
            raise RecipeError(f"{where}: not valid YAML: {error.problem}{_mend_of_yaml(error)}") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{self.path}: not valid YAML: {error}") from error
        if root is None or not isinstance(tree, dict):
            raise RecipeError(f"{self.path}: a recipe is a mapping of keys to values, but this is {value_text(tree)}")
        self._note_lines(root, ())
        tree_copy: dict[Any, Any] = _copied(tree)
        return tree_copy

    def _note_lines(self, node: yaml.Node, loc: Loc) -> None:
        self._lines.setdefault(loc, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null") and node.value == "":
            self._empty.add(loc)
        elif isinstance(node, yaml.MappingNode):
            for key_node, value in node.value:
                key = yaml_values.key(key_node)
                self._lines[(*loc, key)] = key_node.start_mark.line + 1
                self._note_lines(value, (*loc, key))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._note_lines(value, (*loc, i))

    def _override(self, text: str) -> None:
        path, equals, raw_value = text.partition("=")
        *parents, last = path.split(".")
        node: Any = self.tree
        loc: Loc = ()
        try:
            if not equals or not all((*parents, last)) or len(parents) > yaml_values.MAX_DEPTH:
                raise LookupError("is not of the form key.path=value")
            value = _copied(yaml_values.load(raw_value)[1])
            for part in parents:
                loc = (*loc, _key(node, part))
                if isinstance(node, dict) and node.get(loc[-1]) is None:
                    node[loc[-1]] = {}
                    self._overrides[loc] = text
                if loc[0] == "stages" and loc[-1] == "controller" and isinstance(node[loc[-1]], str):
                    node[loc[-1]] = {"kind": node[loc[-1]]}
                node = node[loc[-1]]
            loc = (*loc, _key(node, last))
        except (LookupError, yaml.YAMLError) as error:
            no_value = (
                f"{value_text(raw_value)} is not a YAML value; quote it inside the shell's quotes: 'KEY=\"TEXT\"'"
            )
            mistake = error.args[0] if isinstance(error, LookupError) else no_value
            self._overrides[text,] = text
            self.problems.append(RecipeProblem((text,), mistake))
            return
        node[loc[-1]] = value
        for by_loc in (self._lines, self._overrides):
            for under in [old for old in by_loc if old[: len(loc)] == loc]:
                del by_loc[under]
        self._overrides[loc] = text
        self._empty = {old for old in self._empty if old[: len(loc)] != loc} | ({loc} if raw_value == "" else set())


def _key(node: Any, part: str) -> Any:
    """Return the key or index in `node` that a part of an override's path refers to."""
    if isinstance(node, dict):
        return int(part) if part not in node and _is_index(part) and int(part) in node else part
    if isinstance(node, list):
        names = [item.get("name") if isinstance(item, dict) else None for item in node]
        if part in names:
            return names.index(part)
        if _is_index(part) and int(part) < len(node):
            return int(part)
        item_names = [name for name in names if isinstance(name, str)]
        size = f", which has {len(node)} (the first is 0)" if _is_index(part) else ""
        raise LookupError(f"there is no {part!r} in this list{size or hint(part, item_names)}")
    raise LookupError(f"there is nothing to set {part!r} in: its parent is {value_text(node)}")


def _is_index(part: str) -> bool:
    return part.isdecimal() and len(part) < 19


def _copied(value: Any) -> Any:
    """Return a deep copy of a tree in which values shared through YAML anchors are separate objects."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def label(tree: Any, loc: Loc) -> str:
    """Return a location as written in overrides: keys joined by dots, list items by their names."""
    parts = []
    for key in loc:
        item = value_at(tree, (key,))
        name = item.get("name") if isinstance(tree, list) and isinstance(item, dict) else None
        parts.append(name if isinstance(name, str) else str(key))
        tree = item
    return ".".join(parts)


def value_at(tree: Any, loc: Loc) -> Any:
    """Return the value at `loc`, or None when there is none."""
    for key in loc:
        inside = tree if isinstance(tree, dict) else dict(enumerate(tree)) if isinstance(tree, list) else {}
        tree = inside.get(key)
    return tree


def walk(tree: Any, loc: Loc = ()) -> Iterator[tuple[Loc, Any]]:
    """Yield the location and value of every node of a tree, the tree itself first."""
    yield loc, tree
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from walk(value, (*loc, key))


def value_text(value: Any) -> str:
    """Return a value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
