"""Bad input, in every format: `rld check` and `rld train` refuse it with exit code 2 and say what, where and why."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rld.cli import main
from rld.data.formats import FORMATS, csv
from rld.data.recipe_rows import skill_rows
from rld.pipeline.run import RunContext
from rld.recipe import registry
from rld.recipe.reading import read_recipe
from tests.data.test_formats import WRITE

TOKENIZER = str(registry.folder("recipes") / "data" / "tokenizer")
ROWS = [{"question": f"{a}{b}?", "answer": a} for a in "abcd" for b in "abcd"]
TABLES = [suffix for suffix in WRITE if suffix in FORMATS]
TEXTS = [suffix for suffix in TABLES if suffix != ".parquet"]
LABELS = {"a": " a", "b": " b", "c": " c"}
RECIPE = {
    "name": "bad",
    "tokenizer": {"characters": "abcdefghijklmnopqrstuvwxyz? \u00e9"},
    "models": {"m": {"new": "llama", "config": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}}},
    "max_new_tokens": 4,
    "stages": [{"name": "s", "kind": "sft", "student": "m", "steps": 1, "batch": 2}],
}
RECIPE["models"]["m"]["config"] |= {"intermediate_size": 16, "max_position_embeddings": 64}  # type: ignore[index]

_CHAT_MODEL = {"new": "llama", "tokenizer": TOKENIZER, "config": {"hidden_size": 16}}
CHAT: dict[str, Any] = {"models": {"m": _CHAT_MODEL}, "tokenizer": None, "prompts": {"style": "chat"}}


def refused(folder: Path, capsys: pytest.CaptureFixture[str], skill: dict[str, Any], **keys: Any) -> str:
    """Return what both commands say of a recipe that both refuse; nothing is left of a run."""
    path = folder / "bad.yaml"
    path.write_text(json.dumps({**RECIPE, "skills": {"it": {"held_out": 2, **skill}}, **keys}))
    texts = []
    capsys.readouterr()  # of writing the files
    for command in (["check", str(path)], ["train", str(path), "--output", str(folder / "run")]):
        assert main(command) == 2
        texts.append(capsys.readouterr().err)
    assert texts[0] == texts[1] and "Traceback" not in texts[0]
    assert not (folder / "run").exists()
    return texts[0]


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize(
    ("rows", "skill", "expected"),
    [
        (ROWS[:1], {}, "skills.it.held_out: its file has a single question, to hold out or to train on"),
        ([*ROWS, {"question": "a" * 10_000_000, "answer": "b"}], {}, ": a text of 10,000,000 characters; a row may"),
        ([*ROWS, {"question": "a\0b", "answer": "b"}], {}, ": a text with a null character"),
        ([*ROWS, {"question": "ab", "answer": ""}], {}, ": answer is empty"),
        (
            [*ROWS, {"question": "ab", "answer": "abcdef"}],
            {},
            "has the answer 'abcdef', of 7 tokens with its end, and 4",
        ),
        ([*ROWS, {"question": "a" * 80, "answer": "b"}], {}, "has 80 tokens in its prompt, and with 2 for the answer"),
        (
            ROWS,
            {"columns": {"answer": "label"}},
            "columns.answer: rowsSUFFIX has no column 'label'; choose from question,",
        ),
        (
            [{"title": "a", "label": "b"}] * 4,
            {},
            ": no row has a column 'question'; the first row has 'title', 'label'",
        ),
        (
            ROWS,
            {"held_out": {"file": "rowsSUFFIX"}},
            "all 16 different questions of its file are held-out questions too",
        ),
        (ROWS, {"kind": "labelled", "labels": LABELS}, "labels that skills.it.labels has not: 'd' on 4 rows ("),
        (
            [{"question": f"a{letter}", "answer": ""} for letter in "abcdefgh"],
            {"kind": "labelled", "labels": LABELS},
            "skill 'it', level 0: none of its rows has a label",
        ),
        (ROWS, {"kind": "code_task"}, ": no row has a column 'prompt'; the first row has 'question', 'answer'"),
        (ROWS, {"kind": "conversation"}, ": no row has a column 'messages'; the first row has 'question', 'answer'"),
    ],
    ids=[
        *("one row", "10 MB", "null character", "no answer", "answer too long", "prompt too long", "no such column"),
        *("no column", "held out twice", "no such label", "no labels", "no code task", "no conversation"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, capsys, suffix, rows, skill, expected):
    path = tmp_path / f"rows{suffix}"
    WRITE[suffix](path, rows)
    skill, expected = (json.loads(json.dumps(value).replace("SUFFIX", suffix)) for value in (skill, expected))
    text = refused(tmp_path, capsys, {"file": path.name, **skill}, **(CHAT if "conversation" in skill.values() else {}))
    assert expected in text
    if expected.startswith(":"):
        assert f"rows{suffix}:" in text, "the file is named"


@pytest.mark.parametrize("suffix", TABLES)
def test_files_that_are_no_table_of_rows(tmp_path, capsys, suffix):
    path, skill = tmp_path / f"rows{suffix}", {"file": f"rows{suffix}"}
    path.write_bytes(b"")
    assert f"rows{suffix}: " in refused(tmp_path, capsys, skill)
    WRITE[suffix](path, ROWS)
    rewritten(path, gzip.compress)
    assert f"rows{suffix}: it is compressed; unpack it" in refused(tmp_path, capsys, skill)
    path.rename(tmp_path / f"rows{suffix}.gz")
    text = refused(tmp_path, capsys, {"file": f"rows{suffix}.gz"})
    assert f"rows come from {', '.join(FORMATS)} files" in text and f"not rows{suffix}.gz; unpack it" in text
    path.write_bytes(b'{"question": "a", \n"answer')
    assert f"rows{suffix}" in refused(tmp_path, capsys, skill)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\n \n", "it.txt: no rows"),
        (gzip.compress(b"hello", mtime=0), "it.txt: it is compressed; unpack it"),
        ("hello".encode("utf-16"), "it.txt: it is not text in UTF-8, but perhaps in UTF-16"),
        ("hell\u00f6".encode("latin-1"), "it.txt: is not text in UTF-8, at byte 4 (0xf6, on line 1); save it as UTF-8"),
        (b"hello\0 there", "it.txt:1: a text with a null character"),
    ],
)
def test_files_that_are_no_text(tmp_path, capsys, content, expected):
    (tmp_path / "it.txt").write_bytes(content)
    assert expected in refused(tmp_path, capsys, {"file": "it.txt", "kind": "plain_text"})
    assert "it.txt is a text; kind: plain_text reads it" in refused(tmp_path, capsys, {"file": "it.txt"})


@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_texts_in_other_encodings(tmp_path, capsys, suffix, encoding):
    path = tmp_path / f"rows{suffix}"
    WRITE[suffix](path, [*ROWS, {"question": "\u00e9", "answer": "a"}])
    rewritten(path, lambda content: content.decode().replace("\\u00e9", "\u00e9").encode(encoding))
    text = refused(tmp_path, capsys, {"file": path.name})
    assert "is not text in UTF-8" in text and "save it as UTF-8" in text


@pytest.mark.parametrize("suffix", TEXTS)
def test_a_mark_at_the_start_and_other_line_ends_are_fine(tmp_path, capsys, suffix):
    path, recipe = tmp_path / f"rows{suffix}", tmp_path / "good.yaml"
    WRITE[suffix](path, ROWS)
    rewritten(path, lambda content: b"\xef\xbb\xbf" + content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    recipe.write_text(json.dumps({**RECIPE, "skills": {"it": {"file": path.name, "held_out": 2}}}))
    assert main(["check", str(recipe)]) == 0


@pytest.mark.parametrize(
    ("suffix", "content", "expected"),
    [
        (".csv", "question,answer,answer\na,b,c\n", "rows.csv: two of its columns are called 'answer'"),
        (".csv", "question,answer\na,b\nc,d,e\nf\n", "rows.csv:3: 3 cells, and 2 columns"),
        (".csv", "question|answer\na|b\n", "its columns are separated by '|'; save the file with commas"),
        (".tsv", "question;answer\na;b\n", "its columns are separated by ';'; rename the file to .csv"),
        (".csv", "question\tanswer\na\tb\n", r"its columns are separated by '\t'; rename the file to .tsv"),
        (".tsv", "question,answer\na,b\n", "its columns are separated by ','; rename the file to .csv"),
        (".csv", 'question,answer\n"a,b\n', "the row on line 2 is not CSV: unexpected end of data"),
        (".jsonl", '{"question": "a", "answer": "b", "answer": "c"}', "rows.jsonl:1: not valid JSON: 'answer' is set"),
        (".jsonl", '{"question": {"a": 1}, "answer": "b"}', "rows.jsonl:1: question should be text, not {'a': 1}"),
        (".jsonl", '["a", "b"]', "rows.jsonl:1: a row is a mapping with question and answer"),
        (".json", '[{"question": ["a"], "answer": "b"}]', "rows.json:1: question should be text, not ['a']"),
    ],
)
def test_tables_that_are_uneven_nested_or_name_a_column_twice(tmp_path, capsys, suffix, content, expected):
    (tmp_path / f"rows{suffix}").write_text(content)
    assert expected in refused(tmp_path, capsys, {"file": f"rows{suffix}"})


def test_problems_of_all_files_of_a_skill_are_told_once_each_with_what_mends_them(tmp_path, capsys):
    letters = "abcddd" * 3
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{a}{i},{a}\n" for i, a in enumerate(letters)))
    (tmp_path / "test.csv").write_text("text,label\na,A\nb,b\n")
    columns = {"question": "text", "answer": "label"}
    skill = {"file": "rows.csv", "kind": "labelled", "labels": LABELS, "columns": columns}
    text = refused(tmp_path, capsys, skill | {"held_out": {"file": "test.csv"}})
    assert text.splitlines() == [
        f"rld: labels that skills.it.labels has not: 'd' on 9 rows ({tmp_path}/rows.csv:5), "
        f"'A' on 1 row ({tmp_path}/test.csv:2; perhaps 'a')",
        "rld: skills.it.labels has 'a', 'b', 'c'; name there each label of the files with the words that say it",
        "rld: mend these rows, or leave out all such rows by bad_rows: skip in the recipe",
    ]
    (tmp_path / "test.csv").write_text("body,grade\na,a\nb,b\n")
    text = refused(tmp_path, capsys, skill | {"held_out": {"file": "test.csv"}})
    assert "test.csv: no row has a column 'text'; the first row has 'body', 'grade'" in text
    assert "skills.it.columns names 'text' as question, of held-out rows too" in text
    (tmp_path / "test.csv").write_text("text,label\na,a\nb,b\n")
    columns |= {"level": "grade"}
    text = refused(tmp_path, capsys, {"file": "test.csv", "held_out": {"file": "test.csv"}, "columns": columns})
    assert "columns.level: test.csv has no column 'grade'" in text and "a line of names above it" in text
    (tmp_path / "rows.csv").write_text("text,label,grade\nc,c,0\nd,d,0\n")
    text = refused(tmp_path, capsys, {"file": "rows.csv", "held_out": {"file": "test.csv"}, "columns": columns})
    assert "test.csv: no row has a column 'grade', which skills.it.columns names" in text


def test_no_more_labels_are_held_out_than_rows_have_and_a_share_is_of_those(tmp_path, capsys):
    letters = "abc" + " " * 20
    (tmp_path / "rows.csv").write_text("question,answer\n" + "".join(f"{i}?,{a}\n" for i, a in enumerate(letters)))
    skill = {"file": "rows.csv", "kind": "labelled", "labels": LABELS}
    tokenizer = {"tokenizer": {"characters": "abc0123456789? "}}
    text = refused(tmp_path, capsys, skill | {"held_out": 4}, **tokenizer)
    assert "skills.it.held_out: all 3 different questions with a label" in text and "to at most 2 (now 4), or" in text
    (tmp_path / "good.yaml").write_text(
        json.dumps({**RECIPE, **tokenizer, "skills": {"it": {**skill, "held_out": 0.7}}})
    )
    (rows,) = skill_rows(read_recipe(tmp_path / "good.yaml"), tmp_path).values()
    assert len(rows.held_out()) == 2


def test_a_separator_that_is_not_there_and_a_single_document_are_refused(tmp_path, capsys):
    (tmp_path / "it.txt").write_text("ab\n\ncd")
    skill = {"file": "it.txt", "kind": "plain_text"}
    text = refused(tmp_path, capsys, {**skill, "document_separator": "\\n"})
    assert r"skills.it.document_separator: '\\n' stands between no two documents of" in text
    text = refused(tmp_path, capsys, {**skill, "held_out": 1})
    assert "skills.it.held_out: its file has a single document" in text and "by a share, such as held_out: 0.1" in text


def test_files_of_a_folder_that_are_left_out_are_named_once(tmp_path, capsys, recwarn):
    (tmp_path / "texts").mkdir()
    for name, content in {"a.txt": "ab", "b.txt": "cd", "c.txt": " ", "d.pdf": "x", ".e.txt": "hidden"}.items():
        (tmp_path / "texts" / name).write_text(content)
    WRITE[".jsonl"](tmp_path / "test.jsonl", [{"text": "ab"}, {"text": "ef"}])
    skill = {"file": "texts", "kind": "plain_text", "block": 16, "held_out": {"file": "test.jsonl"}}
    stage = {**RECIPE["stages"][0], "lora": {"r": 2}}  # type: ignore[index]
    (tmp_path / "good.yaml").write_text(json.dumps({**RECIPE, "skills": {"it": skill}, "stages": [stage]}))
    assert main(["check", str(tmp_path / "good.yaml")]) == 0
    assert "asked TRL" in capsys.readouterr().out, "rows are read twice, and told of once"
    warned = [str(warning.message) for warning in recwarn if warning.category is UserWarning]
    expected = "d.pdf", "c.txt", "has the same question: a.txt:1"
    assert len(warned) == 3 and all(line.endswith(end) for line, end in zip(warned, expected, strict=True))


def test_rows_with_one_problem_are_one_line_and_a_form_of_conversation_is_recognised(tmp_path, capsys):
    rows = [{"question": "a", "answer": "b" if i % 2 else ""} for i in range(40)]
    WRITE[".jsonl"](tmp_path / "rows.jsonl", rows)
    text = refused(tmp_path, capsys, {"file": "rows.jsonl"})
    assert "rows.jsonl:1: answer is empty; so in 19 rows more: 3, 5, 7, 9, ..." in text
    assert len(text.splitlines()) == 2
    rows = [{"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 20
    WRITE[".jsonl"](tmp_path / "rows.jsonl", rows)
    text = refused(tmp_path, capsys, {"file": "rows.jsonl", "kind": "conversation"}, **CHAT)
    assert "no row has a column 'messages'" in text and "as in columns: {messages: conversations}" in text
    WRITE[".jsonl"](tmp_path / "rows.jsonl", [{"text": f"{i}", "test_list": ["assert f"]} for i in range(9)])
    text = refused(tmp_path, capsys, {"file": "rows.jsonl", "kind": "code_task"})
    assert "as in columns: {prompt: COLUMN} with one of text, test_list, or set skills.it.kind to" in text
    (tmp_path / "rows.csv").write_text("what is it,that\nwhat are you,this\n")
    text = refused(tmp_path, capsys, {"file": "rows.csv"})
    assert "rows.csv: if its first line holds data, write a line of names above it" in text


def test_columns_of_one_name_in_parquet(tmp_path, capsys):
    columns = [pyarrow.array(["a", "b", "c"])] * 3
    table = pyarrow.Table.from_arrays(columns, names=["question", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    text = refused(tmp_path, capsys, {"file": "rows.parquet"})
    assert "rows.parquet: two of its columns are called 'answer'" in text


def test_folders_without_rows_of_several_formats_and_with_a_file_that_is_empty_or_compressed(tmp_path, capsys):
    (tmp_path / "rows").mkdir()
    skill = {"file": "rows"}
    assert "there are no " in refused(tmp_path, capsys, skill)
    WRITE[".jsonl"](tmp_path / "rows" / "a.jsonl", ROWS)
    (tmp_path / "rows" / "b.jsonl").write_text("\n")
    assert "b.jsonl: no rows" in refused(tmp_path, capsys, skill)
    (tmp_path / "rows" / "b.jsonl").rename(tmp_path / "rows" / "b.jsonl.gz")
    assert "has compressed files; unpack b.jsonl.gz" in refused(tmp_path, capsys, skill)
    (tmp_path / "rows" / "b.jsonl.gz").rename(tmp_path / "rows" / "b.csv")
    assert "files of several formats: .csv, .jsonl" in refused(tmp_path, capsys, skill)


def test_a_folder_of_more_files_than_can_be_listed_in_a_second_or_two_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rld.data.formats.files._MAX_FILES", 3)
    (tmp_path / "texts" / "below").mkdir(parents=True)
    for name in ("a.txt", "b.pdf", ".c.txt", "below/d.txt", "below/e.txt"):
        (tmp_path / "texts" / name).write_text("ab")
    text = refused(tmp_path, capsys, {"file": "texts", "kind": "plain_text"})
    assert "there are more than 3 files in the folder texts and below it; name a folder that holds" in text


def test_source_that_is_nested_deeper_than_python_parses_is_refused(tmp_path, capsys):
    source = "-" * 9999 + "1"
    WRITE[".jsonl"](tmp_path / "rows.jsonl", [{"prompt": "a", "tests": source}] * 3)
    text = refused(tmp_path, capsys, {"file": "rows.jsonl", "kind": "code_task"})
    assert "rows.jsonl:1: tests are not Python that can be read: they are nested too deep" in text
    (tmp_path / "tasks.py").write_text(source)
    text = refused(tmp_path, capsys, {"generator": "./tasks.py:make"})
    assert "tasks.py: not valid Python: it is nested too deep" in text


def test_names_of_columns_as_long_as_a_book_are_cut_in_messages(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text(f"{'a' * 10_000},b\n1,2\n")
    text = refused(tmp_path, capsys, {"file": "rows.csv"})
    assert "no row has a column 'question'; the first row has 'aaa" in text
    assert max(map(len, text.splitlines())) < 1000


def test_a_data_set_that_is_not_on_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    path = tmp_path / "hub.yaml"
    path.write_text(json.dumps({**RECIPE, "skills": {"it": {"dataset": "owner/no_such_rows", "held_out": 2}}}))
    for command in (["check", str(path)], ["train", str(path), "--output", str(tmp_path / "run")]):
        assert main(command) == 2
        text = capsys.readouterr().err
        assert "data set owner/no_such_rows: " in text and "not in the cache of this machine either" in text


def talk(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "a"} for role in roles]}


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (talk("assistant", "user", "assistant"), "begins with the assistant; a conversation begins with the user"),
        (talk("user"), "a conversation should end with an answer of the assistant"),
        (talk("human", "assistant"), "message 1 of messages has the role 'human'"),
        ({"messages": []}, "messages is empty"),
    ],
    ids=["begins with the assistant", "no answer", "unknown role", "empty"],
)
def test_conversations_that_are_none(tmp_path, capsys, suffix, record, expected):
    path = tmp_path / f"rows{suffix}"
    records = [talk("user", "assistant"), record]
    if suffix in csv.SUFFIXES:
        records = [{"messages": json.dumps(record["messages"])} for record in records]
    WRITE[suffix](path, records)
    model = {"new": "llama", "tokenizer": TOKENIZER, "config": {"hidden_size": 16}}
    keys: dict[str, Any] = {"models": {"m": model}, "tokenizer": None, "prompts": {"style": "chat"}}
    text = refused(tmp_path, capsys, {"file": path.name, "kind": "conversation"}, **keys)
    assert expected in text and f"{path.name}:" in text


def context(folder: Path, skill: dict[str, Any], **keys: Any) -> RunContext:
    path = folder / "few.yaml"
    path.write_text(json.dumps({**RECIPE, "skills": {"it": skill}, **keys}))
    return RunContext(read_recipe(path), path, folder / "run", resume=False)


@pytest.mark.parametrize("suffix", TABLES)
def test_questions_of_held_out_rows_are_left_out_of_training_and_counted(tmp_path, suffix):
    WRITE[suffix](tmp_path / f"rows{suffix}", ROWS)
    WRITE[suffix](tmp_path / f"test{suffix}", [ROWS[0], ROWS[0], {"question": "bb? ", "answer": "b"}])
    path = tmp_path / "twice.yaml"
    skill = {"file": f"rows{suffix}", "held_out": {"file": f"test{suffix}"}}
    path.write_text(json.dumps({**RECIPE, "skills": {"it": skill}}))
    message = (
        rf"'it': 3 rows are neither trained on nor scored, .* same question: rows{suffix}:\d+, rows.*, test{suffix}:\d"
    )
    with pytest.warns(UserWarning, match=message):
        (rows,) = skill_rows(read_recipe(path), tmp_path).values()
    assert [row["prompt"] for row in rows.held_out()] == ["aa?", "bb? "]
    assert {row["prompt"] for row in rows.rows(400, seed=0)} == {row["question"] for row in ROWS} - {"aa?", "bb?"}


def test_repeated_questions_of_one_file_are_counted_too(tmp_path):
    WRITE[".jsonl"](tmp_path / "rows.jsonl", [*ROWS, *ROWS[:4]] * 2)
    path = tmp_path / "twice.yaml"
    path.write_text(json.dumps({**RECIPE, "skills": {"it": {"file": "rows.jsonl", "held_out": 15}}}))
    with pytest.warns(UserWarning, match=r"'it': 2\d rows are neither trained on nor scored.*, \.\.\."):
        (rows,) = skill_rows(read_recipe(path), tmp_path).values()
    assert len({row["prompt"] for row in rows.held_out()}) == 15
    assert len({row["prompt"] for row in rows.rows(100, seed=0)}) == 1


def test_held_out_rows_that_are_skipped_are_counted_and_named(tmp_path):
    WRITE[".jsonl"](tmp_path / "rows.jsonl", ROWS)
    WRITE[".jsonl"](
        tmp_path / "test.jsonl", [{"question": "zz", "answer": "a"}, {"question": "xx", "answer": "abcdefg"}]
    )
    made = context(tmp_path, {"file": "rows.jsonl", "held_out": {"file": "test.jsonl"}}, bad_rows="skip")
    with pytest.warns(UserWarning, match=r"1 of 18 rows: test.jsonl:2 has the answer 'abcdefg'.*left out"):
        made.row_checks.require(made.skill_rows)
    assert [row["prompt"] for row in made.skill_rows["it"].held_out()] == ["zz"]
