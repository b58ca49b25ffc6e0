"""Mutated files of rows, of every format and kind of rows: `rld` reads them, or refuses them as a user's mistake.

560 files of a fixed seed; with RLD_FRESH_SEEDS=1 of another one each time, which a failure prints with how to see it
again. 500 are read by the reader of rows alone, as the start of a run reads them, and 60 by the whole `rld check`.
"""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rld.cli import main
from rld.data.formats import FORMATS
from rld.data.recipe_rows import skill_rows
from rld.errors import RldError
from rld.recipe import registry
from rld.recipe.reading import read_recipe
from rld.recipe.schema import Recipe
from tests.data.test_bad_input import LABELS, RECIPE, ROWS
from tests.recipe.test_mutations import OPTIONS, require_short
from tests.support.mutations import damaged_bytes, mutated_files

TOKENIZER = registry.folder("recipes") / "data" / "tokenizer"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TURNS = [[{"role": "user", "content": f"a{x}"}, {"role": "assistant", "content": "c"}] for x in "abcdef"]
TEXT = b"ab\n\ncd\n\nef\n\ngh"

SKILLS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "question_answer": ([{**row, "level": i % 2, "note": "x"} for i, row in enumerate(ROWS[:6])], {}),
    "labelled": (ROWS[:9], {"labels": LABELS, "columns": {"question": "{question} {answer}"}}),
    "conversation": ([{"messages": turns, "tools": None} for turns in TURNS], {"turns": "all"}),
    "code_task": (
        [{"prompt": f"f{x}", "tests": "assert f", "solution": "a", "entry_point": "f"} for x in "abcdef"],
        {},
    ),
    "plain_text": ([{"text": f"abc{x}"} for x in "abcdef"], {"block": 16}),
}
"""The rows of each kind before their changes, and the options of their skill."""


class Case(NamedTuple):
    """A kind of rows, the suffix of their file, what the recipe says of bad rows, and what the file holds."""

    kind: str
    suffix: str
    bad_rows: str
    content: bytes


class Skills:
    """A recipe for each kind, format and treatment of bad rows, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipes: dict[tuple[str, str, str], tuple[Path, Recipe]] = {}
        for kind, (rows, options) in SKILLS.items():
            for suffix in [*FORMATS, *([".txt"] if kind == "plain_text" else [])]:
                for bad_rows in ("refuse", "skip"):
                    path = folder / f"{kind}{suffix}.{bad_rows}.yaml"
                    skill = {"kind": kind, "file": f"rows{suffix}", "held_out": 2, **options}
                    separator = {"document_separator": "\n\n"} if suffix == ".txt" else {}
                    chat = _chat() if kind == "conversation" else {}
                    tree = {**RECIPE, **chat, "bad_rows": bad_rows, "skills": {"it": skill | separator}}
                    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))
                    self._write(suffix, TEXT if separator else in_format(suffix, rows))
                    self.recipes[kind, suffix, bad_rows] = path, read_recipe(path)

    def write(self, case: Case) -> tuple[Path, Recipe]:
        """Write the file of a case; return its recipe."""
        self._write(case.suffix, case.content)
        return self.recipes[case[:3]]

    def _write(self, suffix: str, content: bytes) -> None:
        (self.folder / f"rows{suffix}").write_bytes(content)


def _chat() -> dict[str, Any]:
    models: Any = RECIPE["models"]
    model = {**models["m"], "tokenizer": str(TOKENIZER)}
    return {"tokenizer": None, "prompts": {"style": "chat"}, "models": {"m": model}}


def in_format(suffix: str, rows: list[dict[str, Any]]) -> bytes:
    """Return what a file of rows holds.

    Raises:
        Exception: the format cannot hold such values.
    """
    if suffix == ".parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return bytes(sink.getvalue())
    if suffix in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0].keys(), delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    return ("\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows, indent=1)).encode()


@st.composite
def cases(draw: Callable[[Any], Any]) -> Case:
    kind = draw(st.sampled_from(sorted(SKILLS)))
    suffix = draw(st.sampled_from([*FORMATS, *([".txt"] if kind == "plain_text" else [])]))
    files = damaged_bytes(TEXT) if suffix == ".txt" else mutated_files(SKILLS[kind][0], partial(in_format, suffix))
    return Case(kind, suffix, draw(st.sampled_from(["refuse", "skip"])), draw(files))


@pytest.fixture(scope="module")
def skills(tmp_path_factory: pytest.TempPathFactory) -> Skills:
    return Skills(tmp_path_factory.mktemp("files"))


def require_read_or_refused(skills: Skills, case: Case) -> None:
    _, recipe = skills.write(case)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (rows,) = skill_rows(recipe, skills.folder).values()
            assert rows.held_out() and rows.examples()
    except RldError as error:
        assert error.exit_code == 2
        require_short(str(error).splitlines())


def require_checked_or_refused(skills: Skills, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = skills.write(case)
    before = sorted(skills.folder.rglob("*"))
    code = main(["check", str(path)])
    assert code in (0, 2)
    errors = capsys.readouterr().err
    if code == 2:
        require_short(errors.splitlines())
        assert f"rows{case.suffix}" in errors or "skills.it" in errors or "skill 'it'" in errors
    assert sorted(skills.folder.rglob("*")) == before


@given(case=cases())
@settings(OPTIONS, max_examples=500)
def test_files_are_read_or_refused(skills, case):
    require_read_or_refused(skills, case)


@given(case=cases())
@settings(OPTIONS, max_examples=60)
def test_files_are_checked_or_refused(skills, capsys, case):
    require_checked_or_refused(skills, case, capsys)


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (
            [{"role": "user"}],
            "refuses a conversation of user: Object of type Undefined is not JSON serializable; does each",
        ),
        ("[" + "9" * 6_000 + "]", "rows.jsonl:1: tools is not valid JSON: a number has 6,000 digits"),
        ("[" * 100_000, "rows.jsonl:1: tools is not valid JSON: it is nested too deep"),
    ],
)
def test_tools_that_a_template_or_json_cannot_read_are_refused(skills, capsys, tools, expected):
    content = in_format(".jsonl", [{"messages": turns, "tools": tools} for turns in TURNS])
    path, _ = skills.write(Case("conversation", ".jsonl", "refuse", content))
    assert main(["check", str(path)]) == 2
    assert expected in capsys.readouterr().err
