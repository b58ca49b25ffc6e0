"""Rows of a file stay on disk: memory does not grow with the file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rld.data.stored import Selection, Stored

NUM_ROWS, NUM_CHARACTERS = 3_000, 20_000
ROOM = 20_000_000
"""Bytes by which memory may grow, of a file of 60 million."""

CHILD = """
import json, random, re, sys
from pathlib import Path
from rld.data.recipe_rows import skill_rows
from rld.recipe.schema import Recipe

def peak():  # of this program alone, which ru_maxrss is not: it begins with the peak of the parent
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

file = {"file": sys.argv[1], "held_out": 2}
skills = {"questions": file, "documents": file | {"kind": "plain_text", "columns": {"text": "question"}}}
stages = [{"name": "only", "kind": "sft", "student": "any", "steps": 1}]
for skill in skills:
    recipe = Recipe.model_validate({"name": "r", "stages": stages, "skills": {skill: skills[skill]}})
    before = peak()
    rows = skill_rows(recipe, Path())[skill]
    drawn = [rows.draw(level, random.Random(i), i) for i in range(3) for level in (0, 1)]
    texts = [row["prompt"] or row["answer"] for row in drawn + rows.held_out()]
    print(json.dumps([peak() - before, rows.num_rows, texts]))
"""


def question(number: int) -> str:
    return f"{number} é " + "w" * NUM_CHARACTERS


def test_memory_does_not_grow_with_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for i in range(NUM_ROWS):
            file.write(json.dumps({"question": question(i), "answer": str(i), "level": i % 2}) + "\n")
    assert path.stat().st_size > 3 * ROOM
    process = subprocess.run([sys.executable, "-c", CHILD, path], capture_output=True, text=True, check=True)
    lines = process.stdout.splitlines()
    assert len(lines) == 2
    for growth, num_rows, texts in map(json.loads, lines):
        assert growth < ROOM
        assert num_rows == NUM_ROWS
        numbers = [int(text.split()[0]) for text in texts]
        assert texts == [question(number) for number in numbers]
        assert [number % 2 for number in numbers] == [0, 1] * 4, "rows are drawn of the level that is asked for"
        assert not set(numbers[:6]) & set(numbers[6:]), "held-out rows are not drawn"


def test_stored_values_are_those_of_a_list():
    values = [{"text": "é" * i, "number": i} for i in range(50)]
    stored = Stored(values[:10])
    assert stored[9] == values[9]
    for value in values[10:]:
        stored.append(value)
    assert list(stored) == values
    assert stored[-1] == values[-1]
    assert list(stored[::-7]) == values[::-7]
    odd = Selection.where(stored, lambda value: value["number"] % 2 == 1)
    assert (list(odd), list(odd[3:9:2]), odd[-1]) == (values[1::2], values[1::2][3:9:2], values[49])
    with pytest.raises(IndexError):
        stored[50]


def test_a_full_temporary_folder_is_named(monkeypatch):
    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/small")
    with pytest.raises(OSError, match=r"No space left on device: '/small'"):
        Stored([1])
