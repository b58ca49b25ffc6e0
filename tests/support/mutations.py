"""Changes of recipes and of data files, drawn by hypothesis: slips of a person, and what damage leaves of a file."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from rld.recipe import yaml_values
from rld.recipe.document import Loc, value_at, walk

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**32, 2**63, 10**400, -(10**20), 0.5, -0.5, -0.0, 1e308, 5e-324),
    *("", " ", "a", "x" * 5000, "../..", "./none.py:f", "answers:exact_match", "a:b:c", "none", "\ud800", "{question}"),
    *("\u202e\u0301\U0001f600", "a\nb", "\0", "{", "{0}", "%s", "$HOME", "~", "/", ".", "nan", "inf", "1e400", "a.b"),
    *([], [[]], [1, "a"], [None], [{}], ["reverse", 1], [["reverse"]], {}, {"a": 1}, {"": 1}, {"kind": 3}),
    *({"kind": "sft"}, {"use": 1}, {"new": 1}, {"new": "llama", "config": []}, {"path": "\0"}, {"url": "http://a b"}),
    *({"file": "."}, {"dataset": "a/b"}, {"model": None}, {"name": ["a"]}, {"a": {"b": {"c": {}}}}),
]
"""Values of every type, few of which may stand where they are put."""

YAML: list[str] = [
    *("1e400", "-1e400", ".nan", "-.inf", "-0", "0x_", "010", "1_0", "0o17", "2024-01-01", "1:30", "~", "=", "!"),
    *("&a [*a]", "&a {b: *a}", "*none", "!!int x", "!!bool x", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]"),
    *("!!python/object:os.system {}", "!mine 1", "!!str [a]", "!!float ''", "!!null x", "{<<: 5}", "{<<: {a: 1}}"),
    *(
        "? [a]",
        "[" * 99,
        "{a: " * 70 + "1" + "}" * 70,
        "&a {x: 1, y: *a}",
        "'",
        '"\\x',
        "|",
        ">-",
        "%TAG",
        "---",
        "...",
    ),
    *("[&a [1, 1], &b [*a, *a], &c [*b, *b]]", "{a: 1, a: 2}", "{1: 2}", "{null: 1}", "{.nan: 1, true: 2}", ""),
]
"""YAML that stands where a value, or a key, should be."""

TEXTS = [
    "&a *a",
    "<<: 5",
    "? [a]",
    "\t",
    "\x07",
    "%",
    "[" * 99,
    "- ",
    ": ",
    "\ufeff",
    "|",
    "\r",
    "\x85",
    "#",
    "'",
    "\n",
]
"""What is typed into a text by mistake."""

_RAW = re.compile(r'"\\u0000(\d+)"')


@dataclass(frozen=True)
class Base:
    """A recipe before its changes.

    Attributes:
        folder: The recipe's folder, relative to that of all recipes.
        text: What its file holds.
    """

    folder: str
    text: str

    def tree(self) -> Any:
        return yaml_values.load(self.text)[1]


@dataclass(frozen=True)
class Mutant:
    """A recipe with a few changes.

    Attributes:
        folder: As that of its base.
        content: Its bytes.
        overrides: What follows it on the command line.
    """

    folder: str
    content: bytes
    overrides: tuple[str, ...]


def mutated_recipes(bases: Sequence[Base]) -> st.SearchStrategy[Mutant]:
    """Return mutants of recipes: of their values and keys, of their text, of their bytes, and by overrides."""
    trees = [base.tree() for base in bases]
    locs = [[loc for loc, _ in walk(tree) if loc] for tree in trees]
    names = sorted({loc[-1] for of_tree in locs for loc in of_tree if isinstance(loc[-1], str)})

    @st.composite
    def drawn(draw: Callable[[Any], Any]) -> Mutant:
        i = draw(st.integers(0, len(bases) - 1))
        way = draw(st.sampled_from(["values"] * 6 + ["text"] * 2 + ["bytes", "override"]))
        content, overrides = bases[i].text.encode(), ()
        if way == "values":
            tree = copy.deepcopy(trees[i])
            for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
                _change(draw, tree, names)
            content = _as_yaml(tree)
        elif way == "text":
            content = draw(damaged(bases[i].text, TEXTS)).encode(errors="surrogatepass")
        elif way == "bytes":
            content = draw(damaged_bytes(content))
        else:
            overrides = tuple(draw(_override(locs[i])) for _ in range(draw(st.integers(1, 2))))
        return Mutant(bases[i].folder, content, overrides)

    return drawn()


def _change(draw: Callable[[Any], Any], tree: Any, names: Sequence[str]) -> None:
    """Change a value or a key of a tree in place."""
    locs = [loc for loc, _ in walk(tree) if loc]
    if not locs:
        return
    loc: Loc = draw(st.sampled_from(locs))
    parent, key = value_at(tree, loc[:-1]), loc[-1]
    way = draw(st.sampled_from(["value"] * 4 + ["yaml"] * 2 + ["delete", "rename", "repeat", "wrap", "other", "spell"]))
    if way == "delete":
        del parent[key]
    elif way == "rename" and isinstance(parent, dict):
        raw = st.integers(0, len(YAML) - 1).map(lambda i: f"\0{i}")
        parent[draw(st.sampled_from([*names, f"{key}s", f"{key}"[1:], f" {key}"]) | raw)] = parent.pop(key)
    elif way == "repeat" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif way == "wrap":
        parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}, [parent[key], parent[key]]]))
    elif way == "other":
        parent[key] = copy.deepcopy(value_at(tree, draw(st.sampled_from(locs))))
    elif way == "spell" and isinstance(parent[key], str) and not parent[key].startswith("\0"):  # else a place in `YAML`
        parent[key] = draw(damaged(parent[key], TEXTS))
    elif way == "spell" and isinstance(parent[key], (int, float)):
        third = parent[key] / 3 if abs(parent[key]) < 1e300 else parent[key]  # a larger integer is no float
        parent[key] = draw(st.sampled_from([-parent[key], parent[key] * 1000, third, str(parent[key])]))
    elif way == "yaml":
        parent[key] = f"\0{draw(st.integers(0, len(YAML) - 1))}"
    else:
        parent[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))


def _as_yaml(tree: Any) -> bytes:
    """Return a tree as JSON, which is YAML, with the texts of `YAML` where they were put."""
    return _RAW.sub(lambda match: YAML[int(match[1])], json.dumps(tree, indent=1)).encode()


@st.composite
def _override(draw: Callable[[Any], Any], locs: Sequence[Loc]) -> str:
    path = ".".join(map(str, draw(st.sampled_from(locs))))
    if draw(st.integers(0, 4)) == 0:
        path = draw(damaged(path, [".", "..", "0", "-1", "=", " ", "\u00b2", "9" * 30, "a"]))
    value = draw(st.sampled_from([*YAML, *TEXTS]) | st.sampled_from(VALUES).map(json.dumps))
    return f"{path}={value}"


@st.composite
def damaged(draw: Callable[[Any], Any], text: str, pieces: Sequence[str]) -> str:
    """Return a text with pieces put in, left out or written twice, or without its end."""
    for _ in range(draw(st.integers(1, 3))):
        start, size = draw(st.integers(0, max(len(text) - 1, 0))), draw(st.integers(0, 8))
        end = start + size
        piece = draw(st.sampled_from([*pieces, text[start:end] * 2, "", None]))
        text = text[:start] if piece is None else text[:start] + piece + text[end:]
    return text


@st.composite
def damaged_bytes(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """Return bytes of which some are others or missing, or which are in another encoding."""
    way = draw(st.sampled_from(["flip", "flip", "flip", "cut", "insert", "encode", "double"]))
    start = draw(st.integers(0, max(len(content) - 1, 0)))
    if way == "flip":
        changed = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, max(len(content) - 1, 0)))
            changed[place : place + 1] = bytes([draw(st.integers(0, 255))])
        return bytes(changed)
    if way == "cut":
        return content[start : start + draw(st.integers(0, len(content)))]
    if way == "insert":
        return content[:start] + draw(st.binary(max_size=9) | st.just(b"\0" * 9)) + content[start:]
    if way == "double":
        return content + content[start:]
    encoding = draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "cp037"]))
    return content.decode(errors="replace").encode(encoding, errors="replace")


CELLS: list[Any] = [
    *(None, True, 0, -1, 2**70, 10**400, 0.5, -0.0, float("nan"), float("inf"), "", " ", "\0", "a" * 1_000_001),
    *(
        "\ud800",
        "\ufeff",
        "\u202e\U0001f600",
        "{question}",
        "a,b",
        '"',
        "a\r\nb",
        "1e400",
        "a",
        "b",
        "c",
        "1",
        "assert",
    ),
    *([], [[]], ["a", 1], {}, {"a": {"b": None}}, [{"role": "user"}], [{"role": "assistant", "content": None}]),
    *(
        [{"role": "system", "content": "a"}],
        [{"role": "user", "content": ["a"]}] * 2,
        [{"from": "human", "value": "a"}],
    ),
    *(
        [{"role": "assistant", "content": "a", "tool_calls": 1}],
        [{"role": 1, "content": "a"}],
        "(" * 300,
        "-" * 9999 + "1",
    ),
]
"""Values of a row, few of which may stand where they are put."""

BYTES = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"{",
    b"]",
    b"[" * 5000,
    b":1e400,",
    b"NaN",
    b"\t",
]
"""What gets into a file of rows by mistake."""


@st.composite
def mutated_files(
    draw: Callable[[Any], Any], rows: Sequence[dict[str, Any]], written: Callable[[list[dict[str, Any]]], bytes]
) -> bytes:
    """Return a file of rows of which some have other values or columns, or whose bytes are damaged."""
    if draw(st.booleans()):
        changed = [dict(row) for row in rows]
        for _ in range(draw(st.integers(1, 3))):
            _change_row(draw, changed, sorted(rows[0]))
        try:
            return written(changed)
        except (
            ValueError,
            TypeError,
            ArithmeticError,
            LookupError,
            NotImplementedError,
        ):  # the format cannot hold such a value
            pass
    content = written(list(rows))
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.booleans()):
            content = draw(damaged_bytes(content))
        else:
            start = draw(st.integers(0, max(len(content) - 1, 0)))
            end = start + draw(st.integers(0, 8))
            content = content[:start] + draw(st.sampled_from([*BYTES, content[start:end] * 2, b""])) + content[end:]
    return content


def _change_row(draw: Callable[[Any], Any], rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Change a row in place, or a column of all rows."""
    row, column = draw(st.sampled_from(rows)), draw(st.sampled_from(columns))
    some = rows if draw(st.booleans()) else [row]
    way, value = (
        draw(st.sampled_from(["cell"] * 5 + ["no column", "more", "rename", "nest"])),
        draw(st.sampled_from(CELLS)),
    )
    for each in some:
        if way == "no column":
            each.pop(column, None)
        elif way == "rename":
            each[f"{column} "] = each.pop(column, None)
        else:
            each["extra" if way == "more" else column] = [each.get(column)] if way == "nest" else value
