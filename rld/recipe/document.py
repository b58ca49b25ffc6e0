"""A recipe's YAML: its values, where each was written, and the command line's overrides.

This module does not know a recipe's schema, except that a controller may be written as its kind alone; `reading.py`
validates the schema. The dialect is YAML 1.2: `on`, `off`, `yes` and `no` are text, `010` is text, `1e-5` is a number;
a key that is set twice or has no value is an error.
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
from rld.utils import secrets
from rld.utils.suggestions import hint

Loc: TypeAlias = tuple[Any, ...]
"""The keys and indices that lead from the top of a recipe to a value."""

_LONGEST = 400  # maximum characters of a problem's text, which may quote a long value


class RecipeProblem(NamedTuple):
    """One mistake: the location of the value and the message."""

    loc: Loc
    text: str


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with the scalars of YAML 1.2; raises an error for a duplicate key."""

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise _error("a key must be text or a number", key_node)
            if key in keys:
                raise _error(f"{key!r} is set twice", key_node)
            keys.add(key)
        return super().construct_mapping(node, deep)


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class RecipeDocument:
    """The values of a recipe after the command line's overrides.

    Args:
        path: The recipe's file.
        overrides: Such as `rollout.temperature=0.7`; an item of a list is addressed by its index or its `name`.

    Attributes:
        tree: The values.
        problems: Mistakes that do not depend on the schema: overrides of a path that does not exist, keys without a
            value, numbers that are not finite.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or is not a mapping.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.path = path
        self.problems: list[RecipeProblem] = []
        self._lines: dict[Loc, int] = {}
        self._empty: set[Loc] = set()
        self._overrides: dict[Loc, str] = {}
        self.tree: dict[Any, Any] = self._load()
        for text in overrides:
            self._override(text)
        secrets.remember(self.tree)
        for loc, value in walk(self.tree):
            if value is None and loc in self._empty:
                self.problems.append(
                    RecipeProblem(loc, f"{self.label(loc)} has no value; {{}} stands for defaults, null for none")
                )
            elif isinstance(value, float) and not math.isfinite(value):
                self.problems.append(RecipeProblem(loc, f"{self.label(loc)} should be a finite number, not {value}"))

    def report(self, problems: list[RecipeProblem]) -> RecipeError:
        """Return the error that lists `problems`, each with its place, in the order of the file."""
        return RecipeError("\n".join(dict.fromkeys(text for _, text in sorted(map(self._placed, problems)))))

    def label(self, loc: Loc) -> str:
        """Return `loc` as written on the command line; items of a list are addressed by their names."""
        return label(self.tree, loc)

    def _placed(self, problem: RecipeProblem) -> tuple[int, str]:
        """Return a problem's rank in the report and its text with the nearest recorded line or override."""
        loc, text = problem.loc, textwrap.shorten(problem.text, _LONGEST, placeholder=" ...")
        for length in range(len(loc), -1, -1):
            if loc[:length] in self._overrides:
                return sys.maxsize, f"command line ({self._overrides[loc[:length]]}): {text}"
            if loc[:length] in self._lines:
                line = self._lines[loc[:length]]
                return line, f"{self.path}:{line}: {text}"
        return sys.maxsize, text

    def _load(self) -> dict[Any, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
            loader = _Loader(text)
            root = loader.get_single_node()
            tree = None if root is None else loader.construct_document(root)
            self._note_lines(root, (), ())
        except OSError as error:
            raise RecipeError(f"{self.path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{self.path}: is not text in UTF-8") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.path}:{mark.line + 1}" if mark else str(self.path)
            raise RecipeError(f"{where}: not valid YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{self.path}: not valid YAML: {error}") from error
        if not isinstance(tree, dict):
            raise RecipeError(f"{self.path}: a recipe is a mapping of keys to values, but this is {shown(tree)}")
        tree_copy: dict[Any, Any] = _copied(tree)
        return tree_copy

    def _note_lines(self, node: yaml.Node | None, loc: Loc, inside: tuple[yaml.Node, ...]) -> None:
        if node is None:
            return
        if node in inside:
            raise _error("it contains itself", node)
        self._lines.setdefault(loc, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null") and node.value == "":
            self._empty.add(loc)
        elif isinstance(node, yaml.MappingNode):
            for key_node, value in node.value:
                key = yaml.constructor.SafeConstructor().construct_object(key_node)
                self._lines[(*loc, key)] = key_node.start_mark.line + 1
                self._note_lines(value, (*loc, key), (*inside, node))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._note_lines(value, (*loc, i), (*inside, node))

    def _override(self, text: str) -> None:
        path, equals, raw_value = text.partition("=")
        *parents, last = path.split(".")
        node: Any = self.tree
        loc: Loc = ()
        try:
            if not equals or not all((*parents, last)):
                raise LookupError("is not of the form key.path=value")
            value = _copied(yaml.load(raw_value, _Loader))
            for part in parents:
                loc = (*loc, _key(node, part))
                if isinstance(node, dict) and node.get(loc[-1]) is None:
                    node[loc[-1]] = {}
                    self._overrides[loc] = text
                if loc[0] == "stages" and loc[-1] == "controller" and isinstance(node[loc[-1]], str):
                    node[loc[-1]] = {"kind": node[loc[-1]]}
                node = node[loc[-1]]
            loc = (*loc, _key(node, last))
        except (LookupError, yaml.YAMLError, RecursionError) as error:  # the latter: a value that contains itself
            mistake = (
                error.args[0] if isinstance(error, LookupError) else f"{raw_value!r} is not a YAML value; quote it"
            )
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
        return int(part) if part not in node and part.isdecimal() and int(part) in node else part
    if isinstance(node, list):
        names = [item.get("name") if isinstance(item, dict) else None for item in node]
        if part in names:
            return names.index(part)
        if part.isdecimal() and int(part) < len(node):
            return int(part)
        item_names = [name for name in names if isinstance(name, str)]
        raise LookupError(f"there is no {part!r} in this list{hint(part, item_names)}")
    raise LookupError(f"there is nothing to set {part!r} in: its parent is {shown(node)}")


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


def shown(value: Any) -> str:
    """Return a value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
