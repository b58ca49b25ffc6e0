"""Every format reads the same rows, and what no format can read is refused with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from rld.cli import main
from rld.data.file_items import read_items
from rld.data.formats import FORMATS
from rld.data.row_kinds import RowReader
from rld.errors import DataError
from rld.recipe.inputs import Inputs
from rld.recipe.reading import read_recipe

RECORDS = [{"title": f"Is {i} « even »?\nSay.", "label": f"0{i}", "grade": i % 2, "source": "x, y"} for i in range(10)]
READER = RowReader(columns={"question": "title", "answer": "label", "level": "grade"})


def write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(records)


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, records)))


def write_json(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(records, indent=2))


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    Dataset.from_list(records).to_parquet(path)


WRITE: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    ".csv": write_csv,
    ".tsv": write_csv,
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_reads_the_same_rows_also_from_a_folder(tmp_path, suffix):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "README.md").write_text("Not rows.")
    WRITE[suffix](tmp_path / f"all{suffix}", RECORDS)
    WRITE[suffix](tmp_path / "rows" / f"b{suffix}", RECORDS[4:])
    WRITE[suffix](tmp_path / "rows" / f"a{suffix}", RECORDS[:4])
    expected = [
        [(record["title"], record["label"], {"source": "x, y"}) for record in RECORDS[level::2]] for level in (0, 1)
    ]
    for path in (tmp_path / f"all{suffix}", tmp_path / "rows"):
        (levels,) = read_items(path, reader=READER)
        assert [
            [(item.question, item.answer, json.loads(item.entry)) for item in items] for items in levels
        ] == expected
    assert levels[0][0].place.startswith(f"a{suffix}:") and levels[1][-1].place.startswith(f"b{suffix}:")


def test_numbers_and_places_of_json_arrays(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(
        '\ufeff [\n {"question": "a",\n "answer": 3.10}, {"question": "b"},\n\n {"question": "c", "answer": 1}\n]\n'
    )
    with pytest.raises(DataError) as caught:
        read_items(path)
    assert str(caught.value).splitlines()[0] == f"{path}:3: no answer, but 'question'"
    with pytest.warns(UserWarning, match="leaves out 1 row:"):
        ((items,),) = read_items(path, skips_bad_rows=True)
    assert [(item.answer, item.place) for item in items] == [("3.10", "rows.json:3"), ("1", "rows.json:5")]
    write_jsonl(path, [{"question": "a", "answer": "b"}] * 2)
    assert len(read_items(path)[0][0]) == 2, "a .json file may hold JSON Lines"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "the row that begins on line 1 is not valid JSON"),
        ('[{"question": "a", "answer": "b"},\n{"question": }]', "the row that begins on line 2 is not valid JSON"),
        ('[{"question": "a", "answer": "b", "answer": "c"}]', "'answer' is set twice"),
        ('[{"question": "a", "answer": "b"}\n{}]', "a comma or ] is missing behind the row that ends on line 1"),
        ('[{"question": "a", "answer": "b"}] []', "something stands behind the end of the array"),
        ("[]", "no rows"),
        ("", "no rows"),
        ('{"question": "a",\n "answer": "b"}', "rows.json:1: not valid JSON"),
    ],
)
def test_arrays_with_a_mistake_are_refused(tmp_path, text, message):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_items(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('question;answer\na;3,5\nb;"4;5"\n', ["3,5", "4;5"]),
        ('\ufeff\n"question"; answer;note\r\n"a, b"; 3,5;\r\n', ["3,5"]),
        ("question,answer;note,answer\na;b,c;d,3;5\n", ["3;5"]),
    ],
    ids=["decimal commas", "mark, blank line and quotes", "semicolons in a name and in cells"],
)
def test_semicolons_separate_the_cells_of_csv_whose_names_have_no_comma(tmp_path, text, answers):
    path = tmp_path / "rows.csv"
    path.write_text(text, newline="")
    ((items,),) = read_items(path)
    assert [item.answer for item in items] == answers


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".json"])
def test_bom_and_line_ends_are_no_part_of_a_text_and_other_encodings_are_refused(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    WRITE[suffix](path, [{"question": "caf\u00e9", "answer": "b"}, {"question": "c", "answer": "d"}])
    text = path.read_text().replace("\r\n", "\n").replace("\\u00e9", "\u00e9")
    path.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    assert [(item.question, item.answer) for item in read_items(path)[0][0]] == [("caf\u00e9", "b"), ("c", "d")]
    for encoding in ("utf-16", "latin-1"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match=r"is not text in UTF-8.*; save it as UTF-8"):
            read_items(path)


def test_a_byte_that_is_not_in_utf8_is_named_with_its_place_in_the_whole_file(tmp_path):
    lines = [f"q{i},a".encode() for i in range(3000)]
    content = b"\n".join([b"question,answer", *lines, "sch\u00f6n,b".encode("latin-1"), b"c,d"])
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_items(tmp_path / "rows.csv")
    place = f"at byte {content.index(0xF6)} (0xf6, on line 3002)"
    assert str(caught.value) == f"{tmp_path}/rows.csv: is not text in UTF-8, {place}; save it as UTF-8"


@pytest.mark.parametrize("suffix", FORMATS)
def test_empty_files_and_long_rows(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    WRITE[suffix](path, [{"question": "a" * 900_000, "answer": "b"}])
    assert len(read_items(path)[0][0][0].question) == 900_000
    WRITE[suffix](path, [{"question": "a" * 10_000_000, "answer": "b"}])
    with pytest.raises(DataError, match=r":\d: a text of 10,000,000 characters; a row may have 1,000,000"):
        read_items(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"rows\.\w+: (no rows|Parquet file size is 0 bytes)"):
        read_items(path)


def test_folders_of_no_or_several_formats_are_refused_and_all_files_of_one_are_inputs(tmp_path, capsys):
    folder = tmp_path / "rows"
    folder.mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{name: r, skills: {it: {file: rows, held_out: 1}}, tokenizer: {characters: 'abc'}, "
        "models: {m: {new: llama, config: {hidden_size: 16, num_attention_heads: 2}}}, "
        "max_new_tokens: 2, stages: [{name: s, kind: sft, student: m, steps: 1}]}"
    )
    assert main(["check", str(recipe)]) == 2
    assert (
        "skills.it.file: there are no .jsonl, .csv, .tsv, .json, .parquet files in the folder rows"
        in capsys.readouterr().err
    )
    for name, question in ("one", "a"), ("two", "b"):
        write_jsonl(folder / f"{name}.jsonl", [{"question": question, "answer": "c"}] * 2)
    assert main(["check", str(recipe)]) == 0
    assert Inputs.of(read_recipe(recipe), tmp_path, {}).files.keys() >= {"rows/one.jsonl", "rows/two.jsonl"}
    (folder / "three.csv").write_text("question,answer\na,b\n")
    assert main(["check", str(recipe)]) == 2
    assert "the folder rows has files of several formats: .csv, .jsonl" in capsys.readouterr().err
