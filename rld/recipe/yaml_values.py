"""Values of a YAML text in the dialect of recipes, with bounds on its size.

The dialect is YAML 1.2: `on`, `off`, `yes` and `no` are text, `010` is text, `1e-5` is a number. Tags other than those
of text, numbers, mappings and lists are refused, and so is a key that is set twice.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

MAX_DEPTH = 64
"""Mappings and lists inside each other, aliases expanded."""

_MAX_VALUES = 100_000
"""Values of a text, aliases expanded: a text of 20 lines could stand for billions of them."""

_TAG = "tag:yaml.org,2002:"

_READABLE = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with the scalars of YAML 1.2; raises a `yaml.MarkedYAMLError` for whatever cannot be read."""

    yaml_implicit_resolvers = {}
    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _READABLE
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _error(f"it is nested more than {MAX_DEPTH} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            value = node.value if isinstance(node.value, str) else "a mapping or list"
            raise _error(f"{_shortened(value)} is no {node.tag.removeprefix(_TAG)}", node) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == _TAG + "merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise _error("a key must be text or a number", key_node)
            if key in keys:
                raise _error(f"{_shortened(str(key))} is set twice", key_node)
            keys.add(key)
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


class _Extent(NamedTuple):
    """The number of values in a node, itself included, and how deep they are nested."""

    num_values: int
    depth: int


def load(text: str) -> tuple[yaml.Node | None, Any]:
    """Return the node of a YAML text, which has the line of each value, and its value.

    Raises:
        yaml.YAMLError: it is not YAML of the dialect, nested too deep, contains itself, or has too many values.
    """
    loader = _Loader(text)
    root = loader.get_single_node()
    if root is None:
        return None, None
    _measure(root, {}, set())
    return root, loader.construct_document(root)


def key(node: yaml.Node) -> Any:
    """Return the value of a key's node that `load` has accepted; for a merge key, `<<`."""
    return node.value if node.tag == _TAG + "merge" else _Loader("").construct_object(node, deep=True)


def _measure(node: yaml.Node, extents: dict[int, _Extent], open_nodes: set[int]) -> _Extent:
    """Return a node's extent; each node is measured once, however often aliases refer to it."""
    if id(node) in extents:
        return extents[id(node)]
    if id(node) in open_nodes:
        raise _error("it contains itself", node)
    open_nodes.add(id(node))
    num_values, depth = 1, 0
    for child in _children(node):
        extent = _measure(child, extents, open_nodes)
        num_values, depth = num_values + extent.num_values, max(depth, extent.depth)
        if num_values > _MAX_VALUES:
            raise _error(f"its aliases stand for more than {_MAX_VALUES:,} values", node)
        if depth >= MAX_DEPTH:
            raise _error(f"it is nested more than {MAX_DEPTH} deep", node)
    open_nodes.remove(id(node))
    extents[id(node)] = _Extent(num_values, depth + 1)
    return extents[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _error(problem: str, where: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = where.start_mark
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
